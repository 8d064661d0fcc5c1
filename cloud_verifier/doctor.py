"""What a machine has for serving, and what it lacks."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from typing import NamedTuple

NEEDED = {
    "torch": "evaluates the target",
    "transformers": "loads the target and its tokenizer",
    "grpc": "talks to devices",
    "grpc_health": "answers health checks",
    "grpc_reflection": "lets grpcurl list the service",
    "jinja2": "applies chat templates",
    "prometheus_client": "serves metrics",
}
DISTRIBUTIONS = {"grpc": "grpcio", "grpc_health": "grpcio-health-checking", "grpc_reflection": "grpcio-reflection"}


class Finding(NamedTuple):
    """One thing looked at: what it is, whether it is as it should be, and the facts or what to do."""

    what: str
    ok: bool
    detail: str


def examine() -> list[Finding]:
    """Look at packages, devices and threads. Imports torch if it is there."""
    findings = [_package(module, purpose) for module, purpose in NEEDED.items()]
    findings.append(_tracing())
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
        return Finding("tracing", True, "not installed; for --otel: pip install '.[otel]' in a clone of Outrider")
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    return Finding("tracing", True, f"--otel sends traces to {endpoint or 'http://localhost:4317, the default'}")


def _package(module: str, purpose: str) -> Finding:
    name = DISTRIBUTIONS.get(module, module)
    if importlib.util.find_spec(module) is None:
        return Finding(name, False, f"{purpose}; install it with: pip install '.[verifier]' in a clone of Outrider")
    return Finding(name, True, f"{importlib.metadata.version(name)}, {purpose}")
