"""Draft with ONNX Runtime: any exported causal language model with its key-value cache among inputs and outputs.

A graph with GroupQueryAttention writes new keys and values in place: past and present are one buffer, and a rollback is
a shorter length. Any other graph returns past plus new as a fresh tensor: two buffers take turns, and a rollback copies
the kept part. `onnx_graph` reads how a graph wants to be driven, `providers` opens it on an accelerator.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_client.drafters.base import Drafter, DrafterError, DrafterInfo
from edge_client.drafters.kv_store import conversations_bytes
from edge_client.drafters.language_model import LanguageModelDrafter, check_settings
from edge_client.drafters.onnx.graph import read_folder_config, read_graph, read_vocabulary
from edge_client.drafters.onnx.providers import (
    AUTO,
    CPU,
    MEASURED,
    Opened,
    available_providers,
    open_session,
    parse_provider,
)
from edge_client.drafters.runtime_trial import Trial, check_runtime
from edge_client.drafters.settings import DEFAULT_CONTEXT_TOKENS, DeviceSettings
from outrider_models.file_choice import choose
from outrider_models.memory_check import fitting_context
from outrider_models.model_text import ModelText
from outrider_models.runtime_build import ONNX_RUNTIME
from speculation.vocabulary.vocabulary import Vocabulary

_CHUNK_TOKENS = 256
_CHUNK_LOGITS_BYTES = 64 << 20  # graphs that give logits for every row get smaller chunks
_WARM_UP_TOKENS, _TIMED_TOKENS = 4, 16
_PLACES = {"cuda": "cuda", "tensorrt": "cuda"}  # where a provider keeps tensors, if not in the CPU's memory


class OnnxDrafter(LanguageModelDrafter):
    """A .onnx file, or the folder with it, with its external data and its tokenizer.json.

    threads: ONNX Runtime's intra-op threads. top_candidates: most candidates to give. settings: its context and its
    provider, which is not "auto" here. Raises DrafterError if the model cannot be used.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int = 1,
        top_candidates: int = 64,
        settings: DeviceSettings = DeviceSettings(),  # noqa: B008 - frozen
    ) -> None:
        check_settings(threads, top_candidates, settings.context_tokens)
        file = model_file(Path(path))
        vocabulary_fingerprint = read_vocabulary(file).fingerprint
        config = read_folder_config(file)
        context = min(
            config.context_tokens or DEFAULT_CONTEXT_TOKENS, settings.context_tokens or DEFAULT_CONTEXT_TOKENS
        )
        files = _weight_files(file)
        weights_bytes = sum(part.stat().st_size for part in files)
        context = fitting_context(
            str(file),
            weights_bytes,
            config.cache_bytes,
            context,
            limit_bytes=settings.memory_limit_bytes,
            fixed=settings.context_tokens is not None,
        )
        check_runtime(Trial(ONNX_RUNTIME, tuple(files), threads, settings))
        opened = open_session(file, threads, parse_provider(settings.provider))
        self._graph = graph = read_graph(opened.session, config, file)
        context = min([context, *(cache.positions for cache in graph.caches if cache.positions)])
        rows_per_chunk = max(1, _CHUNK_LOGITS_BYTES // (4 * graph.vocabulary_size))
        super().__init__(
            DrafterInfo(
                name=_name(file),
                vocabulary_size=graph.vocabulary_size,
                vocabulary_fingerprint=vocabulary_fingerprint,
                context_tokens=context,
                runs_on=opened.runs_on,
                notices=opened.notices,
            ),
            top_candidates=top_candidates,
            chunk_tokens=_CHUNK_TOKENS if graph.last_row_only else min(_CHUNK_TOKENS, rows_per_chunk),
            memory_bytes=conversations_bytes(settings, weights_bytes + config.cache_bytes(context)),
        )
        self._file = file
        self._make_buffers(opened)

    def vocabulary(self) -> Vocabulary:
        return read_vocabulary(self._file)

    def model_text(self) -> ModelText:
        from edge_client.drafters.onnx.text import read_text

        return read_text(self._file, self.info.name)

    def _make_buffers(self, opened: Opened) -> None:
        graph, chunk, context = self._graph, self._chunk_tokens, self.info.context_tokens
        self._session: Any = opened.session
        self._binding = opened.session.io_binding()
        self._run_binding = opened.session.run_with_iobinding
        self._ids = np.zeros(chunk, graph.dtypes[graph.ids])
        self._mask = None if graph.mask is None else np.ones(context, graph.dtypes[graph.mask])
        self._positions = None if graph.positions is None else np.zeros(chunk, graph.dtypes[graph.positions])
        self._row = np.zeros(graph.vocabulary_size, graph.logits_dtype)
        self._cached = 0  # positions laid out in self._caches[0]; at least those held between calls
        self._bound_count = 0
        place = _PLACES.get(opened.provider)
        self._device_caches: list[Any] = []
        self._caches: list[list[npt.NDArray[Any]]] = []
        if graph.shared and place is not None:
            self._bind_device_cache(place)
            return
        kept = 1 if graph.shared else 2
        sizes = [(cache.heads * (cache.positions or context) * cache.width, cache.dtype) for cache in graph.caches]
        self._caches = [[np.zeros(size, dtype) for size, dtype in sizes] for _ in range(kept)]
        if graph.shared:
            self._bind_shared_cache()

    # --- evaluation ----------------------------------------------------------------------------------------------

    def _evaluate(self, tokens: Sequence[int], start: int, last: bool) -> npt.NDArray[np.floating]:
        rows = self._run(tokens, start)
        if rows is not self._row:
            self._row[:] = rows[-1]
        return self._row

    @property
    def reads_blocks(self) -> bool:
        """Unless the graph throws all rows but the last away."""
        return not self._graph.last_row_only

    def _evaluate_block(self, tokens: Sequence[int], start: int, last: int) -> npt.NDArray[np.floating]:
        return self._run(tokens, start).reshape(-1, len(self._row))[-last:]

    def _run(self, tokens: Sequence[int], start: int) -> npt.NDArray[np.floating]:
        """Evaluate a chunk; logits of every token, shape [n, V], or the row of the last, shape [V]."""
        graph, count = self._graph, len(tokens)
        total = start + count
        if count == 1:
            self._ids[0] = tokens[0]
            if self._positions is not None:
                self._positions[0] = start
        else:
            self._ids[:count] = tokens
            if self._positions is not None:
                self._positions[:count] = np.arange(start, total)
        one_row = count == 1 or graph.last_row_only
        rows = self._row if one_row else np.empty((count, len(self._row)), self._row.dtype)
        if count != self._bound_count or rows is not self._row:
            self._bind_chunk(count, rows)
        if self._mask is not None:
            self._bind_input(graph.mask, self._mask, (1, total))
        for scalar in graph.scalars:
            scalar.array[...] = scalar.value(start, total)
            self._bind_input(scalar.name, scalar.array, scalar.array.shape)
        if not graph.shared:
            self._bind_growing_cache(start, total)
        self._run_binding(self._binding)
        if not graph.shared:
            self._caches.reverse()
            self._cached = total
        if rows is not self._row:
            self._bound_count = 0  # the next chunk must not write into these rows
        return rows

    def _drop_tail(self, length: int) -> None:
        """Nothing to do now: what lies past the length is overwritten (shared) or cut off before the next run."""

    def _state_bytes(self, length: int) -> int:
        """An accelerator's memory is left alone."""
        if self._device_caches:
            return 0
        return sum(cache.heads * length * cache.width * np.dtype(cache.dtype).itemsize for cache in self._graph.caches)

    def _copy_state(self, length: int) -> list[npt.NDArray[Any]]:
        return [view[:, :length].copy() for view in self._laid_out(self._cached)]

    def _restore_state(self, state: list[npt.NDArray[Any]], length: int) -> None:
        self._cached = length
        for view, kept in zip(self._laid_out(length), state, strict=True):
            view[:, :length] = kept

    def _laid_out(self, positions: int) -> list[npt.NDArray[Any]]:
        """The caches as [heads, positions, width]; those that grow hold so many positions."""
        views = []
        for cache, array in zip(self._graph.caches, self._caches[0], strict=True):
            there = (cache.positions or self.info.context_tokens) if self._graph.shared else positions
            views.append(array[: cache.heads * there * cache.width].reshape(cache.heads, there, cache.width))
        return views

    def _free(self) -> None:
        del self._binding, self._run_binding, self._session
        self._caches = []
        self._device_caches = []

    # --- binding: arrays are handed over by address, once where they stay ----------------------------------------

    def _bind_input(self, name: str | None, array: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
        self._binding.bind_input(name, "cpu", 0, array.dtype.type, shape, array.ctypes.data)

    def _bind_output(self, name: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
        self._binding.bind_output(name, "cpu", 0, array.dtype.type, shape, array.ctypes.data)

    def _bind_chunk(self, count: int, rows: npt.NDArray[Any]) -> None:
        self._bind_input(self._graph.ids, self._ids, (1, count))
        if self._positions is not None:
            self._bind_input(self._graph.positions, self._positions, (1, count))
        self._bind_output(self._graph.logits, rows, (1, rows.size // len(self._row), len(self._row)))
        self._bound_count = count

    def _bind_shared_cache(self) -> None:
        for cache, array in zip(self._graph.caches, self._caches[0], strict=True):
            shape = (1, cache.heads, cache.positions or self.info.context_tokens, cache.width)
            self._bind_input(cache.past, array, shape)
            self._bind_output(cache.present, array, shape)

    def _bind_device_cache(self, place: str) -> None:
        """As the shared cache, but in the accelerator's memory: keys and values never cross the bus."""
        import onnxruntime

        for cache in self._graph.caches:
            shape = [1, cache.heads, cache.positions or self.info.context_tokens, cache.width]
            value = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, cache.dtype), place, 0)
            self._binding.bind_ortvalue_input(cache.past, value)
            self._binding.bind_ortvalue_output(cache.present, value)
            self._device_caches.append(value)

    def _bind_growing_cache(self, start: int, total: int) -> None:
        """Past is `start` positions of the first set of buffers; present, `total` positions, goes to the second."""
        if self._cached > start:
            self._cut_cache(start)
        for cache, old, new in zip(self._graph.caches, *self._caches, strict=True):
            self._bind_input(cache.past, old, (1, cache.heads, start, cache.width))
            self._bind_output(cache.present, new, (1, cache.heads, total, cache.width))

    def _cut_cache(self, length: int) -> None:
        for cache, old, new in zip(self._graph.caches, *self._caches, strict=True):
            heads, width = cache.heads, cache.width
            kept = old[: heads * self._cached * width].reshape(heads, self._cached, width)[:, :length]
            new[: heads * length * width].reshape(heads, length, width)[:] = kept
        self._caches.reverse()
        self._cached = length


def open_onnx(path: str | Path, *, threads: int, settings: DeviceSettings) -> Drafter:
    """An `OnnxDrafter` on the provider of the settings. "auto" times a few tokens on each that the installed build has
    and keeps the fastest: an accelerator that must hand every other node back to the CPU is slower than the CPU alone.
    """
    if parse_provider(settings.provider).name != AUTO:
        return OnnxDrafter(path, threads=threads, settings=settings)
    best: tuple[float, OnnxDrafter] | None = None
    notices = []
    there = available_providers()
    for name in (CPU, *(name for name in MEASURED if name in there)):
        try:
            drafter = OnnxDrafter(path, threads=threads, settings=dataclasses.replace(settings, provider=name))
            ms = _ms_per_token(drafter)
        except DrafterError as error:
            if name == CPU:
                raise
            notices.append(f"the provider {name} cannot draft: {error}")
            continue
        notices += drafter.info.notices
        if best is not None and ms >= best[0]:
            drafter.close()
            continue
        if best is not None:
            best[1].close()
        best = ms, drafter
    assert best is not None
    best[1].info = dataclasses.replace(best[1].info, notices=tuple(notices))
    return best[1]


def _ms_per_token(drafter: Drafter) -> float:
    """Median-free and quick: the mean over a few tokens after some to warm up; leaves the drafter empty."""
    drafter.feed([0])
    for count in (_WARM_UP_TOKENS, _TIMED_TOKENS):
        began_s = time.perf_counter()
        for _ in range(count):
            drafter.feed([int(drafter.candidates().ids[0])])
        ms = (time.perf_counter() - began_s) * 1e3 / count
    drafter.rollback(0)
    return ms


# --- the file -----------------------------------------------------------------------------------------------------


def model_file(path: Path) -> Path:
    """The .onnx file to load: the path itself, or the one in the folder. Raises DrafterError if there is none."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise DrafterError(f"there is no folder {path}; expected a folder with model.onnx and tokenizer.json")
    files = [file.relative_to(path).as_posix() for pattern in ("*.onnx", "*/*.onnx") for file in path.glob(pattern)]
    return path / choose(files, None, f"the folder {path}", local=True)


def _name(file: Path) -> str:
    """Folder and file; the folder alone for a model.onnx."""
    folder = file.parent.parent if file.parent.name == "onnx" else file.parent
    return folder.name if file.name == "model.onnx" else f"{folder.name}/{file.name}"


def _weight_files(file: Path) -> list[Path]:
    """The file, and its external data."""
    return [file, *sorted(part for part in file.parent.iterdir() if part.name.startswith(file.name) and part != file)]
