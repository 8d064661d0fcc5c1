"""Draft with llama.cpp: any GGUF file with a causal language model.

Uses the C functions through llama-cpp-python's low-level bindings: its `Llama` class copies every logits row, and
slicing a ctypes pointer costs more than evaluating a small model. Here one batch is allocated once and logits are read
in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_client.drafters.base import DrafterError, DrafterInfo
from edge_client.drafters.kv_store import conversations_bytes
from edge_client.drafters.language_model import LanguageModelDrafter, check_settings
from edge_client.drafters.llama_cpp.rollback import SEQUENCE, PositionRollback, Rollback, StateRollback
from edge_client.drafters.llama_cpp.twigs import MOST_TOKENS, MOST_TWIGS, Place, Twigs
from edge_client.drafters.runtime_trial import Trial, check_runtime
from edge_client.drafters.settings import DEFAULT_CONTEXT_TOKENS, DeviceSettings, FlashAttention, KvType, Weights
from outrider_models.gguf_header import read_header, weight_files
from outrider_models.llama_cpp.api import LOG, check_types, load_api
from outrider_models.llama_cpp.vocabulary import read_vocabulary
from outrider_models.memory_check import fitting_context
from outrider_models.model_text import ModelText
from outrider_models.runtime_build import LLAMA_CPP
from speculation.vocabulary.vocabulary import Vocabulary

_BATCH_TOKENS = 256
_MOST_TIPS = 4  # at once: each more adds as much as the one before, and is worth less
_SAME = 1e-2  # of logits that were evaluated in other batches
_KV_BYTES = {KvType.F16: 2.0, KvType.Q8_0: 34 / 32, KvType.Q4_0: 18 / 32}  # per number, with the scales of blocks


class LlamaCppDrafter(LanguageModelDrafter):
    """A GGUF file.

    threads: llama.cpp's threads. top_candidates: most candidates to give. settings: what else llama.cpp is told.
    verbose: let llama.cpp write its log to standard error. Raises DrafterError if the file cannot be used or the model
    cannot roll back.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int = 1,
        top_candidates: int = 64,
        settings: DeviceSettings = DeviceSettings(),  # noqa: B008 - frozen
        verbose: bool = False,
    ) -> None:
        check_settings(threads, top_candidates, settings.context_tokens)
        path = Path(path)
        header = read_header(path)
        files = weight_files(path)
        weights_bytes = sum(file.stat().st_size for file in files)
        limit = header.number("context_length") or DEFAULT_CONTEXT_TOKENS
        context = min(limit, settings.context_tokens or DEFAULT_CONTEXT_TOKENS)
        kv_bytes = _KV_BYTES[settings.kv_type]
        if not settings.gpu_layers:
            context = fitting_context(
                str(path),
                weights_bytes,
                lambda tokens: header.cache_bytes(tokens + MOST_TOKENS, kv_bytes),
                context,
                limit_bytes=settings.memory_limit_bytes,
                fixed=settings.context_tokens is not None,
            )
        check_runtime(Trial(LLAMA_CPP, tuple(files), threads, settings))
        self._api = api = load_api(verbose)
        check_types(api, header, path)
        self._model: Any = None
        self._context: Any = None
        self._batch: Any = None
        self._twigs: Twigs | None = None
        try:
            self._model = _load_model(api, path, settings)
            vocabulary = api.llama_model_get_vocab(self._model)
            size = api.llama_vocab_n_tokens(vocabulary)
            super().__init__(
                DrafterInfo(
                    name=path.stem,
                    vocabulary_size=size,
                    vocabulary_fingerprint=read_vocabulary(api, vocabulary, size).fingerprint,
                    context_tokens=context,
                    runs_on=_runs_on(api, self._model, settings),
                    notices=_notices(api, settings),
                ),
                top_candidates=top_candidates,
                chunk_tokens=_BATCH_TOKENS,
                memory_bytes=conversations_bytes(
                    settings,
                    0 if settings.gpu_layers else weights_bytes + header.cache_bytes(context + MOST_TOKENS, kv_bytes),
                ),
            )
            stateful = api.llama_model_is_recurrent(self._model) or api.llama_model_is_hybrid(self._model)
            self._context = _open_context(api, self._model, path, context, threads, settings, branches=not stateful)
            self._past: Rollback = (StateRollback if stateful else PositionRollback)(api, self._context)
            if not stateful:
                self._twigs = Twigs(api, self._context)
            self._make_batch()
            self._check_rollback(path)
        except BaseException:
            self._free()
            raise

    def vocabulary(self) -> Vocabulary:
        return read_vocabulary(self._api, self._api.llama_model_get_vocab(self._model), self.info.vocabulary_size)

    def model_text(self) -> ModelText:
        from outrider_models.llama_cpp.text import read_text

        return read_text(self._api, self._model, self.vocabulary(), self.info.name)

    def _make_batch(self) -> None:
        """One batch for all evaluations, seen as NumPy arrays; every entry belongs to the one sequence."""
        self._batch = batch = self._api.llama_batch_init(_BATCH_TOKENS, 0, 1)
        self._batch_tokens, self._batch_positions, self._batch_wants_logits, sequences = (
            np.ctypeslib.as_array(field, shape=(_BATCH_TOKENS,))
            for field in (batch.token, batch.pos, batch.logits, batch.n_seq_id)
        )
        sequences[:] = 1
        self._batch_wants_logits[:] = 0
        for i in range(_BATCH_TOKENS):
            batch.seq_id[i][0] = SEQUENCE

    def _check_rollback(self, path: Path) -> None:
        """A model that cannot go back is found out now, not in the middle of an answer."""
        try:
            first = np.array(self._evaluate([0, 0], 0, True))
            self._drop_tail(1)
            again = np.array(self._evaluate([0], 1, True))
            self._drop_tail(0)
        except DrafterError as error:
            raise DrafterError(
                f"the model in {path} cannot drop its last tokens ({error}), which a drafter must do at every wrong "
                "guess; use a model with plain attention"
            ) from error
        if not np.allclose(first, again, atol=_SAME, rtol=_SAME, equal_nan=True):
            raise DrafterError(
                f"the model in {path} says something else after going back a token than it did before, so its guesses "
                "would be worth nothing; use a model with plain attention"
            )

    def _evaluate(self, tokens: Sequence[int], start: int, last: bool) -> npt.NDArray[np.floating] | None:
        self._decode(tokens, start, 1 if last else 0)
        if not last:
            return None
        row = self._api.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(row, shape=(self.info.vocabulary_size,))

    @property
    def reads_blocks(self) -> bool:
        return True

    def _evaluate_block(self, tokens: Sequence[int], start: int, last: int) -> npt.NDArray[np.floating]:
        self._decode(tokens, start, last)
        rows = self._api.llama_get_logits(self._context)
        return np.ctypeslib.as_array(rows, shape=(last, self.info.vocabulary_size))

    def _decode(self, tokens: Sequence[int], start: int, rows: int) -> None:
        """Evaluate tokens and have logits for the last `rows` of them."""
        lacking = self._past.lacking(start)
        for first in range(0, len(lacking), _BATCH_TOKENS):
            chunk = lacking[first : first + _BATCH_TOKENS]
            self._decode_batch(chunk, start - len(lacking) + first, 0)
        self._decode_batch(tokens, start, rows)

    def _decode_batch(self, tokens: Sequence[int], start: int, rows: int) -> None:
        count = len(tokens)
        batch = self._batch
        if count == 1:
            self._batch_tokens[0], self._batch_positions[0] = tokens[0], start
        else:
            self._batch_tokens[:count] = tokens
            self._batch_positions[:count] = np.arange(start, start + count)
        batch.n_tokens = count
        self._batch_wants_logits[count - rows : count] = 1
        status = self._api.llama_decode(self._context, batch)
        if status and self._twigs:  # no room: what is kept of branches goes
            self._twigs.clear()
            status = self._api.llama_decode(self._context, batch)
        self._batch_wants_logits[count - rows : count] = 0
        if status != 0:
            raise DrafterError(
                f"llama.cpp could not evaluate {count} tokens at position {start}: llama_decode gave {status}"
            )
        self._past.evaluated(tokens, start)

    @property
    def most_tips(self) -> int:
        return 1 if self._twigs is None else _MOST_TIPS

    def _evaluate_beside(
        self, tokens: Sequence[int], start: int, length: int, paths: Sequence[Sequence[int]]
    ) -> list[npt.NDArray[np.floating]]:
        twigs = self._twigs
        assert twigs is not None
        places = twigs.places(self._held, length, paths)
        ends = self._decode_beside(tokens, start, length, paths, places)
        if ends is None:  # no room: what is kept of other branches goes
            twigs.clear()
            places = twigs.places(self._held, length, paths)
            ends = self._decode_beside(tokens, start, length, paths, places)
        if ends is None:
            twigs.clear()
            raise DrafterError(f"llama.cpp could not evaluate {len(paths)} branches beside position {start}")
        twigs.grown([*self._held, *tokens], length, paths, places)
        shape = (self.info.vocabulary_size,)
        return [np.ctypeslib.as_array(self._api.llama_get_logits_ith(self._context, end), shape=shape) for end in ends]

    def _decode_beside(
        self, tokens: Sequence[int], start: int, length: int, paths: Sequence[Sequence[int]], places: Sequence[Place]
    ) -> list[int] | None:
        """Evaluate tokens of the sequence and of twigs; where in the batch each of them ends, None without room."""
        sequences, count = self._batch.seq_id, 0
        ends = []
        runs = [(SEQUENCE, start, tokens)]
        runs += [(sequence, length + held, path[held:]) for path, (sequence, held) in zip(paths, places, strict=True)]
        for sequence, position, run in runs:
            for place, token in enumerate(run):
                self._batch_tokens[count + place], self._batch_positions[count + place] = token, position + place
                sequences[count + place][0] = sequence
            count += len(run)
            ends.append(count - 1)
        self._batch_wants_logits[ends] = 1
        self._batch.n_tokens = count
        status = self._api.llama_decode(self._context, self._batch)
        self._batch_wants_logits[ends] = 0
        for place in range(count):
            sequences[place][0] = SEQUENCE
        return None if status else ends

    def _graft(self, tokens: Sequence[int]) -> int:
        return self._twigs.graft(self._held, tokens) if self._twigs is not None else 0

    def _drop_tail(self, length: int) -> None:
        if self._twigs is not None:
            self._twigs.cut(self._held, length)
        self._past.drop(length)

    def _state_bytes(self, length: int) -> int:
        return self._past.size_bytes

    def _copy_state(self, length: int) -> npt.NDArray[np.uint8]:
        return self._past.copy()

    def _restore_state(self, state: npt.NDArray[np.uint8], length: int) -> None:
        if self._twigs is not None:
            self._twigs.clear()
        self._past.restore(state)

    def _free(self) -> None:
        if self._batch is not None:
            self._api.llama_batch_free(self._batch)
        if self._context is not None:
            self._api.llama_free(self._context)
        if self._model is not None:
            self._api.llama_model_free(self._model)
        self._batch = self._context = self._model = None


# --- loading ----------------------------------------------------------------------------------------------------


def _load_model(api: Any, path: Path, settings: DeviceSettings) -> Any:
    params = api.llama_model_default_params()
    params.n_gpu_layers = settings.gpu_layers
    params.load_mode = {
        Weights.MAPPED: api.LLAMA_LOAD_MODE_MMAP,
        Weights.LOCKED: api.LLAMA_LOAD_MODE_MMAP_MLOCK,
        Weights.READ: api.LLAMA_LOAD_MODE_NONE,
    }[settings.weights]
    model = api.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise DrafterError(f"llama.cpp cannot load {path}: {LOG.last_error()}")
    if api.llama_model_has_encoder(model) or not api.llama_model_has_decoder(model):
        api.llama_model_free(model)
        raise DrafterError(f"the model in {path} has an encoder; expected a causal language model")
    return model


def _open_context(
    api: Any,
    model: Any,
    path: Path,
    context_tokens: int,
    threads: int,
    settings: DeviceSettings,
    *,
    branches: bool,
) -> Any:
    params = api.llama_context_default_params()
    params.n_ctx = context_tokens + (MOST_TOKENS if branches else 0)
    params.n_batch = params.n_ubatch = _BATCH_TOKENS
    params.n_seq_max = 1 + (MOST_TWIGS if branches else 0)
    params.kv_unified = True
    params.n_threads = params.n_threads_batch = threads
    params.type_k = params.type_v = {
        KvType.F16: api.GGML_TYPE_F16,
        KvType.Q8_0: api.GGML_TYPE_Q8_0,
        KvType.Q4_0: api.GGML_TYPE_Q4_0,
    }[settings.kv_type]
    params.flash_attn_type = {
        FlashAttention.AUTO: api.LLAMA_FLASH_ATTN_TYPE_AUTO,
        FlashAttention.ON: api.LLAMA_FLASH_ATTN_TYPE_ENABLED,
        FlashAttention.OFF: api.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    }[settings.flash_attention]
    params.swa_full = True  # a window that forgets could not roll back past its edge
    params.no_perf = True
    context = api.llama_init_from_model(model, params)
    if not context:
        raise DrafterError(f"llama.cpp cannot make a context of {context_tokens} tokens for {path}: {LOG.last_error()}")
    return context


def _runs_on(api: Any, model: Any, settings: DeviceSettings) -> str:
    """llama.cpp says no more than how many layers were asked to go where; -1 asks for all, and the output layer."""
    layers = api.llama_model_n_layer(model)
    offloaded = layers if settings.gpu_layers < 0 else min(settings.gpu_layers, layers)
    if not offloaded or not api.llama_supports_gpu_offload():
        return "llama.cpp, all layers on the CPU"
    return f"llama.cpp, {offloaded} of {layers} layers on a GPU"


def _notices(api: Any, settings: DeviceSettings) -> tuple[str, ...]:
    if settings.gpu_layers and not api.llama_supports_gpu_offload():
        return (
            "the installed llama-cpp-python was built without a GPU backend; the drafter runs on the CPU "
            "(rebuild it with CMAKE_ARGS=-DGGML_CUDA=ON, -DGGML_METAL=ON or -DGGML_VULKAN=ON)",
        )
    return ()
