"""What a device has for drafting, whether the verifier answers, and what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

RUNTIMES = {
    "onnxruntime": ("ONNX drafters", "pip install '.[edge]' in a clone of Outrider"),
    "llama_cpp": (
        "GGUF drafters",
        "pip install '.[llama]' in a clone of Outrider; it compiles llama.cpp, which takes minutes",
    ),
}
DISTRIBUTIONS = {"llama_cpp": "llama-cpp-python"}


class Finding(NamedTuple):
    """One thing looked at: what it is, whether it is as it should be, and the facts or what to do."""

    what: str
    ok: bool
    detail: str


def examine(
    *,
    verifier: str,
    drafter: str,
    model: str,
    threads: int,
    tls: bool,
    ssl_ca_certs: Path | None,
    insecure: bool,
) -> list[Finding]:
    """Look at runtimes, the drafter and the way to the verifier. A runtime is only missed if the drafter needs it."""
    findings = [_runtime(module, drafter) for module in RUNTIMES]
    findings.append(Finding("threads", True, f"{threads} of {os.cpu_count()} CPUs for the drafter"))
    fingerprint, finding = _drafter(drafter, threads)
    if finding:
        findings.append(finding)
    findings += _verifier(verifier, model, fingerprint, tls=tls, ca_certificate=ssl_ca_certs, insecure=insecure)
    return findings


def _runtime(module: str, drafter: str) -> Finding:
    name = DISTRIBUTIONS.get(module, module)
    purpose, remedy = RUNTIMES[module]
    if importlib.util.find_spec(module):
        return Finding(name, True, f"{importlib.metadata.version(name)}, {purpose}")
    gguf = drafter.endswith(".gguf")
    needed = drafter not in ("none", "") and gguf == (module == "llama_cpp")
    return Finding(name, not needed, f"not installed; for {purpose}: {remedy}")


def _drafter(spec: str, threads: int) -> tuple[str, Finding | None]:
    """Load the drafter and time a few tokens."""
    import time

    from edge_client.drafters import load_drafter
    from edge_client.drafters.base import DrafterError

    try:
        drafter = load_drafter(spec, threads=threads)
    except DrafterError as error:
        return "", Finding("drafter", False, str(error))
    if drafter is None:
        return "", Finding("drafter", True, "none; answers stream from the verifier alone")
    drafter.feed([0])
    began = time.perf_counter()
    for _ in range(16):
        drafter.feed([int(drafter.candidates().ids[0])])
    ms = (time.perf_counter() - began) * 1000 / 16
    info = drafter.info
    drafter.close()
    detail = f"{info.name}, {ms:.1f} ms per token, context of {info.context_tokens} tokens"
    return info.vocabulary_fingerprint, Finding("drafter", True, detail)


def _verifier(verifier: str, model: str, fingerprint: str, **connection: Any) -> list[Finding]:
    import time

    from edge_client.errors import SessionError
    from edge_client.link import Channel

    try:
        channel = Channel(verifier, **connection)
    except ValueError as error:
        return [Finding("verifier", False, str(error))]
    try:
        info = channel.model_info(model, timeout_s=5.0)
        began = time.perf_counter()
        channel.model_info(model, timeout_s=5.0)
        rtt_ms = (time.perf_counter() - began) * 1000
    except SessionError as error:
        return [Finding("verifier", False, str(error))]
    finally:
        channel.close()
    findings = [Finding("verifier", True, f"{info.model} at {verifier}, round trip {rtt_ms:.1f} ms")]
    if fingerprint:
        same = fingerprint == info.vocabulary_fingerprint
        findings.append(
            Finding("vocabulary", same, "drafter and target have the same" if same else "drafter and target differ")
        )
    return findings
