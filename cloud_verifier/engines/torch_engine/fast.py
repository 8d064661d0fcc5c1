"""The forward for GPUs: a few fixed shapes, one copy in, one kernel for attention, tokens drawn on the device.

It computes what the engine's own packed forward computes, and stands beside it to be tested against it. What goes to
the device for a step is one buffer (`static_inputs.fill`), what comes back is the chosen tokens. Nothing in between
waits for the host, so all of it can be one CUDA graph (`graphs`).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from cloud_verifier.engines.pages import PAGE_TOKENS
from cloud_verifier.engines.sampling.sampler import Row
from cloud_verifier.engines.torch_engine.attention import StaticAttention, forward_on
from cloud_verifier.engines.torch_engine.fast_path import Parts
from cloud_verifier.engines.torch_engine.graphs import Result, Steps
from cloud_verifier.engines.torch_engine.layout import Segment
from cloud_verifier.engines.torch_engine.pool import PagePool, cache_name
from cloud_verifier.engines.torch_engine.row_rules import RowRule
from cloud_verifier.engines.torch_engine.static_inputs import Inputs, StaticLayout, fill, shape_of

STRICT_SPLIT_PAGES = 8
MOST_STRICT_SPLITS = 64  # they take memory


class FastForward:
    """One forward after another over the pool's pages, for a model whose attention is STATIC."""

    def __init__(
        self,
        model: PreTrainedModel,
        pool: PagePool,
        context_limit: int,
        parts: Parts,
        *,
        strict: bool,
        cuda_graphs: bool = True,
    ) -> None:
        """strict: no row's bits may depend on the company. cuda_graphs: capture steps, on CUDA."""
        self._model, self._pool, self._strict, self.parts = model, pool, strict, parts
        self._most_pages = -(-context_limit // PAGE_TOKENS)
        self.split_pages = strict_split_pages(self._most_pages) if strict else None
        self._cache = {cache_name(model): pool, "use_cache": True}
        self._takes_rows = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._decoder = parts.decoder(model, pool) if parts.decoder is not None else None
        self._pinned = model.device.type == "cuda"
        self._cuda_graphs = cuda_graphs
        self.forget()
        pool.clear([pool.spare_page])

    def capture(self, cuda_graphs: bool) -> None:
        """Whether steps are captured from here on; on CUDA only."""
        self._cuda_graphs = cuda_graphs
        self.forget()

    def forget(self) -> None:
        """Capture every step anew: what kernels do may have been set otherwise."""
        self.steps = Steps(self._run, self._model.device, graphs=self._cuda_graphs)

    def __call__(
        self, segments: list[Segment], tokens: Sequence[int], wanted: Sequence[int], rows: Sequence[Row], rule: RowRule
    ) -> Result:
        """Logits and what was drawn at the wanted rows; both good until the next call.

        segments: of distinct sequences. tokens: theirs, end to end. rows: how to choose at the wanted rows, or none.
        """
        sampled = any(row.plain for row in rows)
        steady = self.parts.kernel.steady
        shape = shape_of(segments, len(wanted), sampled, rule, self._most_pages, strict=self._strict, steady=steady)
        packed = fill(shape, segments, tokens, wanted, rows, self._pool.spare_page, self._pinned)
        result = self.steps(shape, packed)
        return Result(result.logits[: len(wanted)], result.drawn[: len(wanted)])

    def _run(self, inputs: Inputs) -> Result:
        static = StaticAttention(StaticLayout(inputs), self.parts.kernel, self.split_pages)
        logits = self._layer_by_layer(inputs, static) if self._decoder is None else self._decoder(inputs, static)
        if not inputs.shape.sampled:
            return Result(logits, logits.argmax(-1))
        return Result(logits, self.parts.draw(logits, inputs.seeds, inputs.at, inputs.temperatures))

    def _layer_by_layer(self, inputs: Inputs, static: StaticAttention) -> torch.Tensor:
        """As transformers has the model."""
        only = {"logits_to_keep": inputs.keep} if self._takes_rows else {}
        with forward_on(self._pool, static):
            out = self._model(input_ids=inputs.ids[None], position_ids=inputs.positions[None], **self._cache, **only)
        logits: torch.Tensor = out.logits[0]
        return logits if self._takes_rows else logits.index_select(0, inputs.keep)


def strict_split_pages(most_pages: int) -> int:
    """How many pages are summed up in one piece in strict mode, where sequences have at most so many."""
    least = -(-most_pages // MOST_STRICT_SPLITS)
    return max(STRICT_SPLIT_PAGES, 1 << (least - 1).bit_length())
