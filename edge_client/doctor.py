"""What a device has for drafting, whether the verifier answers, and what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

from edge_client.drafters.base import ANY_VOCABULARY, Drafter
from edge_client.drafters.spec import CHAIN, LOOKUPS

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
    loaded, finding = _drafter(drafter, threads)
    if finding:
        findings.append(finding)
    findings += _verifier(verifier, model, loaded, tls=tls, ca_certificate=ssl_ca_certs, insecure=insecure)
    if loaded is not None:
        loaded.close()
    return findings


def _runtime(module: str, drafter: str) -> Finding:
    name = DISTRIBUTIONS.get(module, module)
    purpose, remedy = RUNTIMES[module]
    if importlib.util.find_spec(module):
        return Finding(name, True, f"{importlib.metadata.version(name)}, {purpose}")
    model = drafter.rsplit(CHAIN, 1)[-1]  # the last of a chain; what comes before needs no runtime
    gguf = model.endswith(".gguf")
    needed = model not in ("none", "", *LOOKUPS) and gguf == (module == "llama_cpp")
    return Finding(name, not needed, f"not installed; for {purpose}: {remedy}")


def _drafter(spec: str, threads: int) -> tuple[Drafter | None, Finding | None]:
    """Load the drafter and time a few tokens. Whoever gets it closes it."""
    import time

    from edge_client.drafters import load_drafter
    from edge_client.drafters.base import DrafterError

    try:
        drafter = load_drafter(spec, threads=threads)
    except DrafterError as error:
        return None, Finding("drafter", False, str(error))
    if drafter is None:
        return None, Finding("drafter", True, "none; answers stream from the verifier alone")
    drafter.feed([0])
    began = time.perf_counter()
    for _ in range(16):
        likely = drafter.candidates().ids
        drafter.feed([int(likely[0]) if len(likely) else 0])
    ms = (time.perf_counter() - began) * 1000 / 16
    info = drafter.info
    drafter.rollback(0)
    detail = f"{info.name}, {ms:.1f} ms per token, context of {info.context_tokens} tokens"
    return drafter, Finding("drafter", True, detail)


def _verifier(verifier: str, model: str, drafter: Drafter | None, **connection: Any) -> list[Finding]:
    import time

    from edge_client.errors import SessionError
    from edge_client.link import Channel
    from edge_client.matching import Matching
    from speculation.correspondence import Way

    try:
        channel = Channel(verifier, **connection)
    except ValueError as error:
        return [Finding("verifier", False, str(error))]
    try:
        info = channel.model_info(model, timeout_s=5.0)
        began = time.perf_counter()
        channel.model_info(model, timeout_s=5.0)
        rtt_ms = (time.perf_counter() - began) * 1000
        findings = [Finding("verifier", True, f"{info.model} at {verifier}, round trip {rtt_ms:.1f} ms")]
        if drafter is not None and drafter.info.vocabulary_fingerprint != ANY_VOCABULARY:
            found = Matching(channel, drafter, []).find(info)
            findings.append(Finding("vocabulary", found.way is not Way.NONE, found.sentence))
        return findings
    except SessionError as error:
        return [Finding("verifier", False, str(error))]
    finally:
        channel.close()
