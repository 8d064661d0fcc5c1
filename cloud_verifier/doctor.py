"""What a machine has for serving, and what it lacks."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from typing import NamedTuple

from cloud_verifier.engines.vllm.options import installed_version, missing
from cloud_verifier.preflight import DISTRIBUTIONS, NEEDED
from outrider_cli.extras import install
from outrider_models.runtime_build import LLAMA_CPP, build_risk, is_installed, llama_cpp_install


class Finding(NamedTuple):
    """One thing looked at: what it is, whether it is as it should be, and the facts or what to do."""

    what: str
    ok: bool
    detail: str


def examine() -> list[Finding]:
    """Look at packages, devices and threads. Imports torch if it is there."""
    findings = [_package(module, purpose) for module, purpose in NEEDED.items()]
    findings += [_tracing(), _llama_cpp(), _vllm()]
    if importlib.util.find_spec("torch"):
        import torch

        if torch.cuda.is_available():
            names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
            findings.append(Finding("GPU", True, names))
        else:
            findings.append(Finding("GPU", True, "none seen by torch; the target runs on the CPU"))
        findings.append(Finding("threads", True, f"{torch.get_num_threads()} of {os.cpu_count()} CPUs"))
    return findings


def _tracing() -> Finding:
    if importlib.util.find_spec("opentelemetry") is None:
        return Finding("tracing", True, f"not installed; for --otel: {install('otel')}")
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    return Finding("tracing", True, f"--otel sends traces to {endpoint or 'http://localhost:4317, the default'}")


def _llama_cpp() -> Finding:
    if not is_installed(LLAMA_CPP):
        return Finding("llama.cpp", True, f"not installed; for GGUF targets: {llama_cpp_install()}")
    detail = f"{importlib.metadata.version('llama-cpp-python')}, serves GGUF targets"
    return Finding("llama.cpp", True, f"{detail}; {risk}" if (risk := build_risk()) else detail)


def _vllm() -> Finding:
    version = installed_version()
    if version is None:
        return Finding("vLLM", True, "not installed; for --engine vllm: docs/vllm.md")
    return Finding("vLLM", True, missing() or f"{version}, serves with --engine vllm")


def _package(module: str, purpose: str) -> Finding:
    name = DISTRIBUTIONS.get(module, module)
    if importlib.util.find_spec(module) is None:
        return Finding(name, False, f"{purpose}; install it with: {install('verifier')}")
    return Finding(name, True, f"{importlib.metadata.version(name)}, {purpose}")
