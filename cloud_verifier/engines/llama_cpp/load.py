"""Opening a GGUF file as a target: from its path to an engine that was tried before it serves anyone."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cloud_verifier.engines.base import EngineInfo, ModelError
from cloud_verifier.engines.llama_cpp.engine import MOST_SEQUENCES, LlamaCppEngine, cells_for, holders_for
from cloud_verifier.engines.llama_cpp.fingerprint import contents, fingerprint
from cloud_verifier.engines.llama_cpp.model import ALL_LAYERS, GgufModel, Loading
from cloud_verifier.engines.llama_cpp.row_rules import BATCH_ROWS, CPU_RULES, GPU_RULES, PLAIN_ROWS, RowRule
from cloud_verifier.engines.llama_cpp.self_test import strictness
from cloud_verifier.engines.pages import PAGE_TOKENS
from cloud_verifier.engines.remembered import Remembered
from cloud_verifier.engines.self_test import branches_agree, quick_check
from outrider_models.errors import ModelFileError
from outrider_models.llama_cpp.api import LOG, load_api
from outrider_models.memory_check import available_bytes, readable
from outrider_models.runtime_build import gpu_driver

_log = logging.getLogger(__name__)

GIB = 1 << 30
SHORTEST_CONTEXT = 16
USUAL_TOKENS = 32_768  # of all sequences, unless more are asked for: a step looks at every cell that is in use
CPU_SHARE = 0.25  # of a machine's memory, for keys and values alone
BFLOAT16 = 30  # ggml's GGML_TYPE_BF16, which llama-cpp-python does not name
_NUMBER_BYTES = 2.0  # of keys and values


@dataclass(frozen=True)
class LlamaCppSettings:
    """What an engine may be told.

    gpu_layers: on a GPU; None for all if llama.cpp was built for one. threads: of llama.cpp and of sampling; None for
    torch's choice. strict: find out how words do not depend on company. context_limit: at most so many tokens per
    sequence. kv_cache_gib: memory for keys and values. remember: what strict mode's trials find, in the user's cache
    for the next start.
    """

    gpu_layers: int | None = None
    threads: int | None = None
    strict: bool = True
    max_sequences: int = 32
    context_limit: int | None = None
    kv_cache_gib: float | None = None
    remember: bool = False

    def check(self) -> None:
        """Raises ModelError."""
        if not 1 <= self.max_sequences <= MOST_SEQUENCES:
            raise ModelError(
                f"max_sequences is {self.max_sequences}; with llama.cpp it must be from 1 to {MOST_SEQUENCES} "
                "(--max-sessions)."
            )
        if self.threads is not None and self.threads < 1:
            raise ModelError(f"threads is {self.threads}; it must be at least 1.")
        if self.context_limit is not None and self.context_limit < SHORTEST_CONTEXT:
            raise ModelError(f"--max-model-len is {self.context_limit}; it must be at least {SHORTEST_CONTEXT} tokens.")


class _Room(NamedTuple):
    """limit: tokens of the longest sequence. pages: of all sequences."""

    limit: int
    pages: int


def load(path: Path, settings: LlamaCppSettings = LlamaCppSettings()) -> LlamaCppEngine:
    """Open a causal language model. path: of one in pieces, the first. Raises ModelError."""
    settings.check()
    threads = settings.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    layers = _gpu_layers(settings)
    if not (settings.remember and settings.strict and path.is_file()):
        engine = _tried(path, settings, layers, threads)
        engine.describe(fingerprint=fingerprint(engine, threads, contents(path)))
        return engine
    found = contents(path)
    remembered = Remembered(["llama.cpp", found, astuple(settings), layers, threads, gpu_driver() if layers else ""])
    outcome = remembered.get()
    known = None if outcome is None else _as_found(path, settings, layers, threads, outcome)
    engine = known or _tried(path, settings, layers, threads)
    engine.describe(fingerprint=fingerprint(engine, threads, found))
    if known is None and engine.info.strict:
        remembered.put(_outcome(engine))
    return engine


def _outcome(engine: LlamaCppEngine) -> dict[str, object]:
    """What `_as_found` needs to make a tested engine again."""
    return {
        "repacked": engine.model.loading.repacked,
        "rows": astuple(engine.rows),
        "strict_report": engine.info.strict_report,
        "trees": engine.info.trees,
        "check": quick_check(engine),
    }


def _as_found(
    path: Path, settings: LlamaCppSettings, layers: int, threads: int, found: Mapping[str, Any]
) -> LlamaCppEngine | None:
    """The engine that was tested before; None if it does not compute what it did then."""
    try:
        rule, report, check = RowRule(*found["rows"]), str(found["strict_report"]), str(found["check"])
        repacked, trees = bool(found["repacked"]), bool(found["trees"])
    except (KeyError, TypeError) as error:
        _log.info("What a self-test has found before cannot be used (%s); it is made anew.", error)
        return None
    engine = _opened(path, settings, layers, threads, repacked)
    engine.use(rule)
    engine.describe(strict=True, strict_report=report, trees=trees)
    if check and quick_check(engine) == check:
        _log.info("As tried before on this machine: rows %s, weights repacked: %s.", rule, repacked)
        return engine
    _log.info("The self-test that was passed before does not hold any more; it is made anew.")
    return None


def _opened(path: Path, settings: LlamaCppSettings, layers: int, threads: int, repacked: bool) -> LlamaCppEngine:
    model = GgufModel(path, Loading(layers, repacked))
    return _engine(model, settings, _room(model, settings, on_gpu=layers != 0), threads)


def _tried(path: Path, settings: LlamaCppSettings, layers: int, threads: int) -> LlamaCppEngine:
    """As `_settled`; and whether it may be given trees."""
    engine = _settled(path, settings, layers, threads)
    engine.describe(trees=True)
    engine.describe(trees=branches_agree(engine))
    engine.forget()
    return engine


def _settled(path: Path, settings: LlamaCppSettings, layers: int, threads: int) -> LlamaCppEngine:
    """An engine under the cheapest rule with which the self-test passes; where there is none, it is not strict."""
    engine: LlamaCppEngine | None = None
    for repacked, rules in (GPU_RULES if layers else CPU_RULES) if settings.strict else ():
        if engine is None or engine.model.loading.repacked != repacked:
            engine = None  # it is freed before there is another
            engine = _opened(path, settings, layers, threads, repacked)
        for rule in rules:
            engine.use(rule)
            report = strictness(engine)
            _log.debug("with %s, repacked: %s: %s", rule, repacked, report.sentence)
            engine.describe(strict=report.strict, strict_report=report.sentence)
            if report.strict:
                return engine
    if engine is None:
        return _opened(path, settings, layers, threads, True)
    engine.use(PLAIN_ROWS)
    engine.describe(strict_report=strictness(engine).sentence)
    return engine


def _engine(model: GgufModel, settings: LlamaCppSettings, room: _Room, threads: int) -> LlamaCppEngine:
    context, pages = _open_context(model, settings, room, threads)
    info = EngineInfo(
        name=model.name,
        fingerprint="",
        vocabulary_size=model.vocabulary_size,
        eos_ids=model.end_ids,
        context_limit=min(room.limit, pages * PAGE_TOKENS),
        max_sequences=settings.max_sequences,
        strict=False,
        strict_report="Strict mode is off by its setting.",
    )
    return LlamaCppEngine(model, context, info, pages)


def _gpu_layers(settings: LlamaCppSettings) -> int:
    try:
        api = load_api(verbose=False)
    except ModelFileError as error:
        raise ModelError(f"{error}.") from error
    able = api.llama_supports_gpu_offload()
    if settings.gpu_layers and not able:
        raise ModelError(
            "--gpu-layers asks for a GPU, and the installed llama-cpp-python was built without one; build it with "
            "CMAKE_ARGS=-DGGML_CUDA=ON, -DGGML_METAL=ON or -DGGML_VULKAN=ON, or leave --gpu-layers out."
        )
    if settings.gpu_layers is None:
        return ALL_LAYERS if able else 0
    return settings.gpu_layers


def _room(model: GgufModel, settings: LlamaCppSettings, *, on_gpu: bool) -> _Room:
    """How long a sequence may be, and how many pages there are. Raises ModelError."""
    asked, own = settings.context_limit, model.context_limit
    if asked is not None and asked > own:
        raise ModelError(
            f"--max-model-len is {asked}, and the model takes at most {own} tokens (context_length in its file); give "
            "no more than that, or leave it out."
        )
    limit = asked or min(own, USUAL_TOKENS)
    if 0 < model.window < limit:
        raise ModelError(
            f'The "{model.header.architecture}" model in {model.path} attends over a sliding window of {model.window} '
            f"tokens, out of which llama.cpp cannot take guesses back; give --max-model-len {model.window} or less."
        )
    token_bytes = max(1, model.header.cache_bytes(1, _NUMBER_BYTES))
    given = _given_bytes(settings, on_gpu=on_gpu)
    fitting = max(0, given) // token_bytes // PAGE_TOKENS
    while fitting and cells_for(fitting) * token_bytes > given:
        fitting -= 1 + fitting // 1000
    longest = _longest(limit)
    if fitting < longest:
        if asked is not None or fitting * PAGE_TOKENS < SHORTEST_CONTEXT or fitting < 2:
            raise ModelError(
                f"A sequence of {limit} tokens takes {readable(cells_for(longest) * token_bytes)} of keys and values, "
                f"and there are {readable(max(0, given))} for them; raise --kv-cache-gib or lower --max-model-len."
            )
        limit = fitting * PAGE_TOKENS
        _log.warning("%s is served with %d tokens of context, for which there is memory", model.name, limit)
        longest = fitting
    most = settings.max_sequences * longest
    if settings.kv_cache_gib is None:
        most = min(most, max(longest, USUAL_TOKENS // PAGE_TOKENS))
    return _Room(limit, min(fitting, most))


def _longest(limit: int) -> int:
    """Pages of one sequence; two at least, because the engine is tried with two sequences."""
    return max(2, -(-limit // PAGE_TOKENS))


def _given_bytes(settings: LlamaCppSettings, *, on_gpu: bool) -> int:
    """For keys and values."""
    if settings.kv_cache_gib is not None:
        return int(settings.kv_cache_gib * GIB)
    share = int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * CPU_SHARE)
    free = available_bytes()
    if on_gpu or free is None:
        return share
    return min(share, free)


def _open_context(model: GgufModel, settings: LlamaCppSettings, room: _Room, threads: int) -> tuple[Any, int]:
    """A context and its pages; fewer than there is room for where a GPU has less. Raises ModelError."""
    api, pages = model.api, room.pages
    least = _longest(room.limit) if settings.context_limit is not None or settings.kv_cache_gib is not None else 2
    while True:
        params = api.llama_context_default_params()
        params.n_ctx = cells_for(pages)
        params.n_batch = params.n_ubatch = BATCH_ROWS
        params.n_seq_max = holders_for(settings.max_sequences) + 1
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = api.GGML_TYPE_F16
        params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_AUTO
        if settings.strict and not model.loading.gpu_layers:
            params.type_v = BFLOAT16  # by which every row attends by itself: see `row_rules`
            params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.swa_full = True
        params.no_perf = True
        context = api.llama_init_from_model(model.handle, params)
        if context:
            return context, pages
        if settings.kv_cache_gib is not None or pages // 2 < least:
            raise ModelError(
                f"llama.cpp cannot make room for {pages * PAGE_TOKENS} tokens of {model.path}: {LOG.last_error()}; "
                "lower --kv-cache-gib, --max-model-len or --gpu-layers."
            )
        pages //= 2
