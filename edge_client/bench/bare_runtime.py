"""The same model in its runtime's own loop, as a user of the runtime would write it: what the product's overhead is
measured against.

llama.cpp: one batch of one token, `llama_decode`, the logits row seen as an array, argmax. ONNX Runtime:
`InferenceSession.run` with the present key-values of one step as the past of the next, argmax.
"""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_client.bench.measure import hold, prompt, timed_ms
from edge_client.drafters.base import Drafter, DrafterError
from edge_client.drafters.llama_cpp import drafter as llama_cpp
from edge_client.drafters.llama_cpp.drafter import LlamaCppDrafter
from edge_client.drafters.onnx.drafter import OnnxDrafter
from edge_client.drafters.settings import DeviceSettings

TURNS = 7


@dataclass(frozen=True)
class Overhead:
    """Medians over tokens drafted from the same context, in turns; ms per token."""

    context_tokens: int
    bare_ms: float
    ours_ms: float

    @property
    def overhead_ms(self) -> float:
        """What the product adds."""
        return self.ours_ms - self.bare_ms

    @property
    def overhead_percent(self) -> float:
        """The same as a share of the bare loop's time."""
        return 100.0 * self.overhead_ms / self.bare_ms


class BareLoop(ABC):
    """A runtime, a model and a token to go on with."""

    token = 0

    @abstractmethod
    def begin(self, tokens: list[int]) -> None:
        """Forget everything and evaluate a prompt."""

    @abstractmethod
    def step(self) -> None:
        """Evaluate `token` and take the likeliest one after it."""

    @abstractmethod
    def close(self) -> None:
        """Free what was made for it."""


def compare(drafter: Drafter, settings: DeviceSettings, context: int, *, tokens: int = 48) -> Overhead:
    """The drafter against its runtime alone, both loaded, taking turns. Raises DrafterError if it has no runtime."""
    bare = bare_loop(drafter, settings)
    bare_ms, ours_ms = [], []
    try:
        for _ in range(TURNS):
            bare.begin(prompt(context))
            bare_ms.append(timed_ms([bare.step] * tokens))
            hold(drafter, context)
            ours_ms.append(timed_ms([lambda: _ours(drafter)] * tokens))
    finally:
        bare.close()
    return Overhead(context, statistics.median(bare_ms), statistics.median(ours_ms))


def _ours(drafter: Drafter) -> None:
    drafter.feed([int(drafter.candidates().ids[0])])


def bare_loop(drafter: Drafter, settings: DeviceSettings) -> BareLoop:
    """For a drafter that is one model of llama.cpp or ONNX Runtime."""
    if isinstance(drafter, LlamaCppDrafter):
        return BareLlamaCpp(drafter, settings)
    if isinstance(drafter, OnnxDrafter):
        return BareOnnx(drafter)
    raise DrafterError(
        f"{drafter.info.name} is not one model in a runtime, so there is no bare loop to compare it with"
    )


class BareLlamaCpp(BareLoop):
    """A context of its own on the drafter's loaded weights."""

    def __init__(self, drafter: LlamaCppDrafter, settings: DeviceSettings) -> None:
        self._api = api = drafter._api
        self._size = drafter.info.vocabulary_size
        threads = api.llama_n_threads(drafter._context)
        where = Path(drafter.info.name)
        self._context = llama_cpp._open_context(
            api, drafter._model, where, drafter.info.context_tokens, threads, settings, branches=False
        )
        self._batch = api.llama_batch_init(api.llama_n_batch(self._context), 0, 1)
        self._length = 0

    def begin(self, tokens: list[int]) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        self._length = 0
        chunk = int(self._api.llama_n_batch(self._context))
        for first in range(0, len(tokens), chunk):
            self._decode(tokens[first : first + chunk])

    def step(self) -> None:
        self._decode([self.token])

    def _decode(self, tokens: list[int]) -> None:
        batch = self._batch
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, self._length + i, i == len(tokens) - 1
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
        batch.n_tokens = len(tokens)
        if self._api.llama_decode(self._context, batch) != 0:
            raise DrafterError("llama.cpp refused a batch of its bare loop")
        self._length += len(tokens)
        row = self._api.llama_get_logits_ith(self._context, -1)
        self.token = int(np.ctypeslib.as_array(row, shape=(self._size,)).argmax())

    def close(self) -> None:
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._context)


class BareOnnx(BareLoop):
    """The drafter's session; keys and values are whatever it returns, handed back."""

    def __init__(self, drafter: OnnxDrafter) -> None:
        self._session, self._graph = drafter._session, drafter._graph
        self._names = [self._graph.logits, *(cache.present for cache in self._graph.caches)]
        self._chunk = drafter._chunk_tokens
        self._past: list[Any] = []
        self._length = 0

    def begin(self, tokens: list[int]) -> None:
        self._past = [
            np.zeros((1, cache.heads, cache.positions, cache.width), cache.dtype) for cache in self._graph.caches
        ]
        self._length = 0
        for first in range(0, len(tokens), self._chunk):
            self._run(tokens[first : first + self._chunk])

    def step(self) -> None:
        self._run([self.token])

    def _run(self, tokens: list[int]) -> None:
        graph, start, total = self._graph, self._length, self._length + len(tokens)
        feeds: dict[str, Any] = {graph.ids: np.array([tokens], graph.dtypes[graph.ids])}
        if graph.mask is not None:
            feeds[graph.mask] = np.ones((1, total), graph.dtypes[graph.mask])
        if graph.positions is not None:
            feeds[graph.positions] = np.arange(start, total, dtype=graph.dtypes[graph.positions])[None]
        for scalar in graph.scalars:
            feeds[scalar.name] = np.full(scalar.array.shape, scalar.value(start, total), scalar.array.dtype)
        feeds |= {cache.past: past for cache, past in zip(graph.caches, self._past, strict=True)}
        logits, *self._past = self._session.run(self._names, feeds)
        self._length = total
        self.token = int(logits[0, -1].argmax())

    def close(self) -> None:
        self._past = []
