"""Draft with ONNX Runtime: any exported causal language model with its key-value cache among inputs and outputs.

The graph's own names say how to drive it: ``past_key_values.N.key|value`` goes in and comes out as ``present.N.*``,
``attention_mask`` covers past and new tokens, ``position_ids`` is given only if asked for. Graphs of the model builder
of onnxruntime-genai, of `torch.onnx.export` and of the Hugging Face hub follow this convention.

A graph with GroupQueryAttention writes new keys and values in place: past and present are one buffer, and a rollback is
a shorter length. Any other graph returns past plus new as a fresh tensor: two buffers take turns, and a rollback copies
the kept part. This file runs on the CPU provider only.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_client.drafters.base import DrafterError, DrafterInfo
from edge_client.drafters.language_model import LanguageModelDrafter, check_settings
from speculation.vocabulary import fingerprint, token_strings

DEFAULT_CONTEXT_TOKENS = 4096  # the cache is allocated at once, so a model's 128k would cost gigabytes
MODEL_FILE, TOKENIZER_FILE = "model.onnx", "tokenizer.json"
_CHUNK_TOKENS = 256
_CHUNK_LOGITS_BYTES = 64 << 20  # graphs that give logits for every row get smaller chunks
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_KNOWN_INPUTS = ("input_ids", "attention_mask", "position_ids")


class OnnxDrafter(LanguageModelDrafter):
    """A folder with a .onnx file (``model.onnx`` is preferred), its external data and its tokenizer.json.

    threads: ONNX Runtime's intra-op threads. top_candidates: most candidates to give. context_tokens: longest sequence;
    default the model's own limit, at most 4,096. Raises DrafterError if the folder cannot be used.
    """

    def __init__(
        self, folder: str | Path, *, threads: int = 1, top_candidates: int = 64, context_tokens: int | None = None
    ) -> None:
        check_settings(threads, top_candidates, context_tokens)
        folder = Path(folder)
        file = model_file(folder)
        vocabulary_fingerprint = fingerprint(_token_strings(folder))
        config = _model_config(folder)
        session = _open_session(file, threads)
        self._graph = graph = _Graph.of(session, config, file)
        limit = config.get("context_tokens") or DEFAULT_CONTEXT_TOKENS
        context = min(limit, context_tokens or DEFAULT_CONTEXT_TOKENS)
        rows_per_chunk = max(1, _CHUNK_LOGITS_BYTES // (4 * graph.vocabulary_size))
        super().__init__(
            DrafterInfo(
                name=folder.name if file.name == MODEL_FILE else f"{folder.name}/{file.name}",
                vocabulary_size=graph.vocabulary_size,
                vocabulary_fingerprint=vocabulary_fingerprint,
                context_tokens=context,
            ),
            top_candidates=top_candidates,
            chunk_tokens=_CHUNK_TOKENS if graph.last_row_only else min(_CHUNK_TOKENS, rows_per_chunk),
        )
        self._session = session
        self._binding = session.io_binding()
        self._run_binding = session.run_with_iobinding
        self._shared = _mentions_group_query_attention(file)
        chunk = self._chunk_tokens
        self._ids = np.zeros(chunk, graph.ids_dtype)
        self._mask = np.ones(context, graph.mask_dtype)
        self._positions = None if graph.positions_dtype is None else np.zeros(chunk, graph.positions_dtype)
        self._row = np.zeros(graph.vocabulary_size, graph.logits_dtype)
        size = graph.kv_heads * context * graph.head_size
        kept = 1 if self._shared else 2
        self._caches = [[np.zeros(size, graph.kv_dtype) for _ in graph.past_names] for _ in range(kept)]
        self._cached = 0  # positions laid out in self._caches[0]; at least self._length between calls
        self._bound_count = 0
        if self._shared:
            self._bind_shared_cache()

    # --- evaluation ----------------------------------------------------------------------------------------------

    def _evaluate(self, tokens: Sequence[int], start: int, last: bool) -> npt.NDArray[np.floating]:
        count = len(tokens)
        total = start + count
        if count == 1:
            self._ids[0] = tokens[0]
            if self._positions is not None:
                self._positions[0] = start
        else:
            self._ids[:count] = tokens
            if self._positions is not None:
                self._positions[:count] = np.arange(start, total)
        one_row = count == 1 or self._graph.last_row_only
        rows = self._row if one_row else np.empty((count, len(self._row)), self._row.dtype)
        if count != self._bound_count or rows is not self._row:
            self._bind_chunk(count, rows)
        self._bind_input("attention_mask", self._mask, (1, total))
        if not self._shared:
            self._bind_growing_cache(start, total)
        self._run_binding(self._binding)
        if not self._shared:
            self._caches.reverse()
            self._cached = total
        if rows is not self._row:
            self._row[:] = rows[-1]
            self._bound_count = 0  # the next chunk must not write into these rows
        return self._row

    def _drop_tail(self, length: int) -> None:
        """Nothing to do now: what lies past the length is overwritten (shared) or cut off before the next run."""

    def _free(self) -> None:
        del self._binding, self._run_binding, self._session
        self._caches = []

    # --- binding: arrays are handed over by address, once where they stay ----------------------------------------

    def _bind_input(self, name: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
        self._binding.bind_input(name, "cpu", 0, array.dtype.type, shape, array.ctypes.data)

    def _bind_output(self, name: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
        self._binding.bind_output(name, "cpu", 0, array.dtype.type, shape, array.ctypes.data)

    def _bind_chunk(self, count: int, rows: npt.NDArray[Any]) -> None:
        self._bind_input("input_ids", self._ids, (1, count))
        if self._positions is not None:
            self._bind_input("position_ids", self._positions, (1, count))
        self._bind_output("logits", rows, (1, rows.size // len(self._row), len(self._row)))
        self._bound_count = count

    def _bind_shared_cache(self) -> None:
        graph = self._graph
        shape = (1, graph.kv_heads, self.info.context_tokens, graph.head_size)
        for past, present, cache in zip(graph.past_names, graph.present_names, self._caches[0], strict=True):
            self._bind_input(past, cache, shape)
            self._bind_output(present, cache, shape)

    def _bind_growing_cache(self, start: int, total: int) -> None:
        """Past is `start` positions of the first set of buffers; present, `total` positions, goes to the second."""
        graph = self._graph
        if self._cached > start:
            self._cut_cache(start)
        past_shape = (1, graph.kv_heads, start, graph.head_size)
        present_shape = (1, graph.kv_heads, total, graph.head_size)
        for past, present, old, new in zip(graph.past_names, graph.present_names, *self._caches, strict=True):
            self._bind_input(past, old, past_shape)
            self._bind_output(present, new, present_shape)

    def _cut_cache(self, length: int) -> None:
        heads, width = self._graph.kv_heads, self._graph.head_size
        for old, new in zip(*self._caches, strict=True):
            kept = old[: heads * self._cached * width].reshape(heads, self._cached, width)[:, :length]
            new[: heads * length * width].reshape(heads, length, width)[:] = kept
        self._caches.reverse()
        self._cached = length


# --- the folder -------------------------------------------------------------------------------------------------


def model_file(folder: Path) -> Path:
    """The .onnx file to load: ``model.onnx`` if there, else the only one; hub folders keep it under ``onnx/``.

    Raises DrafterError if there is no such folder, no .onnx file, or no way to choose among several.
    """
    if not folder.is_dir():
        raise DrafterError(f"there is no folder {folder}; expected a folder with {MODEL_FILE} and {TOKENIZER_FILE}")
    found = sorted(folder.glob("*.onnx")) or sorted(folder.glob("onnx/*.onnx"))
    if not found:
        raise DrafterError(f"the folder {folder} has no .onnx file; expected {MODEL_FILE} and {TOKENIZER_FILE}")
    preferred = [file for file in found if file.name == MODEL_FILE] or found
    if len(preferred) > 1:
        names = ", ".join(file.name for file in found)
        raise DrafterError(
            f"the folder {folder} has several .onnx files and none is {MODEL_FILE}: {names}; "
            f"rename the one to draft with to {MODEL_FILE} or move it to its own folder"
        )
    return preferred[0]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DrafterError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise DrafterError(f"{file} holds a {type(parsed).__name__}; expected a JSON object")
    return parsed


def _token_strings(folder: Path) -> list[str]:
    file = folder / TOKENIZER_FILE
    if not file.is_file():
        raise DrafterError(
            f"the folder {folder} has no {TOKENIZER_FILE}; copy it from the model's original repository: "
            "without it nobody can tell whether drafter and target share a vocabulary"
        )
    try:
        return token_strings(_read_json(file))
    except ValueError as error:
        raise DrafterError(f"{file}: {error}") from error


def _model_config(folder: Path) -> dict[str, int]:
    """What graphs leave symbolic, from genai_config.json or config.json, as far as these files are there."""
    found: dict[str, int | None] = {}
    if (folder / "genai_config.json").is_file():
        model = _read_json(folder / "genai_config.json").get("model", {})
        decoder = model.get("decoder", {})
        found = {
            "context_tokens": model.get("context_length"),
            "vocabulary_size": model.get("vocab_size"),
            "kv_heads": decoder.get("num_key_value_heads"),
            "head_size": decoder.get("head_size"),
        }
    elif (folder / "config.json").is_file():
        config = _read_json(folder / "config.json")
        heads, width = config.get("num_attention_heads"), config.get("hidden_size")
        found = {
            "context_tokens": config.get("max_position_embeddings"),
            "vocabulary_size": config.get("vocab_size"),
            "kv_heads": config.get("num_key_value_heads") or heads,
            "head_size": config.get("head_dim") or (width // heads if width and heads else None),
        }
    return {key: value for key, value in found.items() if isinstance(value, int)}


# --- the graph --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Graph:
    """What the graph wants and gives. last_row_only: its logits are those of the last token, shape [1, 1, V]."""

    past_names: list[str]
    present_names: list[str]
    kv_heads: int
    head_size: int
    kv_dtype: type[np.floating]
    vocabulary_size: int
    logits_dtype: type[np.floating]
    last_row_only: bool
    ids_dtype: type[np.integer]
    mask_dtype: type[np.integer]
    positions_dtype: type[np.integer] | None

    @classmethod
    def of(cls, session: Any, config: dict[str, int], file: Path) -> _Graph:
        """Read a session's inputs and outputs. Raises DrafterError unless it is a causal model with a cache."""
        inputs = {node.name: node for node in session.get_inputs()}
        outputs = {node.name: node for node in session.get_outputs()}
        past = [name for name in inputs if name.startswith("past_key_values.")]
        present = ["present." + name.removeprefix("past_key_values.") for name in past]
        missing = [f"input {name}" for name in _KNOWN_INPUTS[:2] if name not in inputs]
        missing += [] if past else ["inputs past_key_values.N.key and past_key_values.N.value"]
        missing += [f"output {name}" for name in ("logits", *present) if name not in outputs]
        strange = [name for name in inputs if name not in past and name not in _KNOWN_INPUTS]
        if missing or strange:
            parts = [f"has no {', no '.join(missing)}"] if missing else []
            parts += [f"asks for unknown input {', '.join(strange)}"] if strange else []
            raise DrafterError(
                f"{file} {' and '.join(parts)}; expected a causal language model exported with its key-value cache "
                "(text-generation-with-past, or the onnxruntime-genai model builder)"
            )

        def number(name: str, shape: list[Any], axis: int) -> int:
            size = shape[axis] if isinstance(shape[axis], int) else config.get(name)
            if size is None:
                raise DrafterError(
                    f"{file} leaves {name} open; put the model's config.json or genai_config.json beside it"
                )
            return int(size)

        def dtype(node: Any, known: dict[str, Any]) -> Any:
            if node.type not in known:
                raise DrafterError(f"{file}: {node.name} is {node.type}; known are {', '.join(known)}")
            return known[node.type]

        cache, logits = inputs[past[0]], outputs["logits"]
        return cls(
            past_names=past,
            present_names=present,
            kv_heads=number("kv_heads", cache.shape, 1),
            head_size=number("head_size", cache.shape, 3),
            kv_dtype=dtype(cache, _FLOATS),
            vocabulary_size=number("vocabulary_size", logits.shape, -1),
            logits_dtype=dtype(logits, _FLOATS),
            last_row_only=logits.shape[1] == 1,
            ids_dtype=dtype(inputs["input_ids"], _INTEGERS),
            mask_dtype=dtype(inputs["attention_mask"], _INTEGERS),
            positions_dtype=dtype(inputs["position_ids"], _INTEGERS) if "position_ids" in inputs else None,
        )


def _open_session(file: Path, threads: int) -> Any:
    try:
        import onnxruntime  # here and not above: `edge-client --help` should not wait for it
    except ImportError as error:
        raise DrafterError("drafting with .onnx needs ONNX Runtime: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A spinning thread pool starves whatever shares the machine; drafting waits for commits most of the time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise DrafterError(f"ONNX Runtime cannot load {file}: {error}") from error


def _mentions_group_query_attention(file: Path) -> bool:
    """Operator names stand in the file as plain text, so finding one needs no ONNX parser on the device."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"GroupQueryAttention") >= 0
