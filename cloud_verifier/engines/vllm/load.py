"""Opening a model with vLLM: from its name to an engine that was tried before it serves anyone."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import transformers

from cloud_verifier.engines.base import EngineInfo, ModelError
from cloud_verifier.engines.file_digest import digests
from cloud_verifier.engines.vllm.options import VllmSettings, arguments_of, installed_version, missing
from cloud_verifier.engines.vllm.self_test import self_test
from outrider_models.runtime_build import cpu_facts

if TYPE_CHECKING:
    from cloud_verifier.engines.vllm.engine import VllmEngine

_log = logging.getLogger(__name__)

GIB = 1 << 30
STRICT_ROWS = 256  # of a step on a CPU: products of 512 rows give other bits than those of fewer
CPU_SHARE = 0.25  # of a machine's memory, for keys and values alone
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "config.json")
_CAPACITY = ("context_limit", "gpu_memory_share", "kv_cache_gib", "max_sequences")  # settings that change no word
_PLACE = "cloud_verifier.engines.vllm"


def load(model: str, settings: VllmSettings) -> VllmEngine:
    """Open a folder or hub id of a causal language model. Raises ModelError.

    One model in a process: vLLM has state of a whole process. It replaces `torch.set_num_threads` on a CPU.
    """
    if why := missing():
        raise ModelError(why)
    settings.check()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    # OpenMP keeps the number by thread, vLLM's kernels want the one that it counted, and vLLM replaces the function.
    enter_thread = partial(torch.set_num_threads, torch.get_num_threads())
    _set_environment(settings)
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor import Executor

    from cloud_verifier.engines.vllm.engine import VllmEngine

    try:
        config = _config(model, settings)
        core = EngineCore(config, Executor.get_class(config), log_stats=False)
    except (ValueError, RuntimeError, OSError, torch.OutOfMemoryError) as error:
        raise ModelError(f"vLLM cannot serve {model}: {_first_sentence(error)}") from error
    hf_config = config.model_config.hf_text_config
    info = EngineInfo(
        name=model.rstrip("/").rpartition("/")[2],
        fingerprint="",
        vocabulary_size=config.model_config.get_vocab_size(),
        eos_ids=_ids(getattr(hf_config, "eos_token_id", None)),
        context_limit=config.model_config.max_model_len,
        max_sequences=settings.max_sequences,
        strict=False,
        strict_report="Strict mode is off by its setting.",
    )
    engine = VllmEngine(core, info, enter_thread)
    company = settings.strict and _settle(engine)
    engine.describe(fingerprint=_fingerprint(model, config, settings, engine.info, company=company))
    return engine


def _settle(engine: VllmEngine) -> bool:
    """Try the engine as it is, then with company for lone rows. Returns whether they have it."""
    report = self_test(engine)
    company = not report.strict and engine.accompany(on=True) > 0
    if company:
        _log.debug("without company for lone rows: %s", report.sentence)
        report = self_test(engine)
        if not report.strict:
            company = False
            engine.accompany(on=False)
    engine.describe(strict=report.strict, strict_report=report.sentence)
    return company


def _set_environment(settings: VllmSettings) -> None:
    """What vLLM takes from there; what a person set is left alone, except where only one value works."""
    if settings.tensor_parallel_size == 1:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the worker in this process, on a CPU, too
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # it takes guesses in another way
    if (
        settings.strict
    ):  # a sequence alone would be split among threads, and its sums have another order than in company
        os.environ.setdefault("VLLM_CPU_ATTN_SPLIT_KV", "0")
    level = os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # of its workers, too
    logging.getLogger("vllm").setLevel(level)
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def _config(model: str, settings: VllmSettings) -> Any:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> NoReturn:
            raise ModelError(f"--vllm-option: {message}.")

    on_cpu = current_platform.is_cpu()
    parser = EngineArgs.add_cli_args(Parser())
    args = EngineArgs.from_cli_args(parser.parse_args(arguments_of(settings.extra)))
    args.model = model
    args.dtype = settings.dtype
    if settings.dtype == "auto" and settings.quantization is None:
        args.dtype = "float32" if on_cpu else "bfloat16"
    args.quantization = settings.quantization
    args.tensor_parallel_size = settings.tensor_parallel_size
    args.max_num_seqs = settings.max_sequences
    args.max_model_len = settings.context_limit
    args.gpu_memory_utilization = settings.gpu_memory_share
    args.enforce_eager = on_cpu or not settings.cuda_graphs
    if settings.kv_cache_gib is not None or on_cpu:
        args.kv_cache_memory_bytes = _cache_bytes(settings)
    if on_cpu and settings.strict and "max-num-batched-tokens" not in settings.extra:
        args.max_num_batched_tokens = max(STRICT_ROWS, settings.max_sequences)
    if on_cpu and settings.tensor_parallel_size > 1:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", _cpu_shares(settings.tensor_parallel_size))
    args.scheduler_cls = f"{_PLACE}.scheduler.TurnScheduler"
    args.worker_extension_cls = f"{_PLACE}.worker.SharedNoiseWorker"
    args.async_scheduling = False
    args.speculative_config = {
        "method": "custom_class",
        "model": f"{_PLACE}.engine.NoProposer",
        "num_speculative_tokens": 1,  # no limit: see `options.MOST_GUESSES`
    }
    return args.create_engine_config()


def _cache_bytes(settings: VllmSettings) -> int:
    """Of keys and values, for each worker."""
    if settings.kv_cache_gib is not None:
        return int(settings.kv_cache_gib * GIB)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(memory * CPU_SHARE / settings.tensor_parallel_size)


def _cpu_shares(workers: int) -> str:
    """This process's CPUs for each of the workers, as VLLM_CPU_OMP_THREADS_BIND has it. Raises ModelError."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < workers:
        raise ModelError(f"--tensor-parallel-size is {workers}, and this process may use {len(cpus)} CPUs.")
    each = len(cpus) // workers
    return "|".join(",".join(map(str, cpus[first * each : (first + 1) * each])) for first in range(workers))


def _first_sentence(error: BaseException) -> str:
    """Of what vLLM says; pydantic puts the number of errors and the class before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    told = next((line for line in lines if "Value error, " in line), lines[0])
    return told.removeprefix("Value error, ").partition(" [type=")[0].rstrip(".") + "."


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _fingerprint(model: str, config: Any, settings: VllmSettings, info: EngineInfo, *, company: bool) -> str:
    """sha256, in hex, over the weights, the configuration, what vLLM computes with, kind of device, and strictness."""
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(model, revision=config.model_config.revision, local_files_only=True))
    whole = hashlib.sha256()
    for digest in digests(sorted(file for pattern in _WEIGHTS for file in folder.glob(pattern))):
        whole.update(digest)
    cpu = cpu_facts()
    device = [cpu.get(name) for name in ("model name", "flags", "Features", "machine")]
    if torch.cuda.is_available():
        device = [torch.cuda.get_device_name(0)]
    deciding = {
        "settings": {**asdict(settings), **dict.fromkeys(_CAPACITY)},
        "dtype": str(config.model_config.dtype),
        "strict": [info.strict, company],
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": [installed_version(), torch.__version__, transformers.__version__],
    }
    whole.update(json.dumps(deciding, sort_keys=True).encode())
    return whole.hexdigest()
