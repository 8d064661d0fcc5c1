"""What a device has for drafting, whether the verifier answers, and what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from typing import NamedTuple

from outrider.v1 import verifier_pb2 as pb

from edge_client.certificate import examine_certificate
from edge_client.drafters.base import ANY_VOCABULARY, Drafter
from edge_client.drafters.settings import DeviceSettings
from edge_client.drafters.spec import CHAIN, LOOKUPS
from edge_client.security import Security

RUNTIMES = {
    "onnxruntime": ("ONNX drafters", "pip install '.[edge]' in a clone of Outrider"),
    "llama_cpp": (
        "GGUF drafters",
        "pip install '.[llama]' in a clone of Outrider; it compiles llama.cpp, which takes minutes",
    ),
}
SLOW_MS = 40.0  # per guess: no faster than most verifiers write by themselves
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
    device: DeviceSettings,
    security: Security,
) -> list[Finding]:
    """Look at runtimes, the drafter and the way to the verifier. A runtime is only missed if the drafter needs it."""
    findings = [_runtime(module, drafter) for module in RUNTIMES]
    findings.append(Finding("threads", True, f"{threads} of {os.cpu_count()} CPUs for the drafter"))
    findings.append(_providers(device.provider))
    loaded, of_drafter = _drafter(drafter, threads, device)
    findings += of_drafter
    findings += _verifier(verifier, model, loaded, security)
    if loaded is not None:
        loaded.close()
    return findings


def _runtime(module: str, drafter: str) -> Finding:
    name = DISTRIBUTIONS.get(module, module)
    purpose, remedy = RUNTIMES[module]
    if importlib.util.find_spec(module):
        # onnxruntime-gpu, -qnn and their like bring the same module under their own name.
        distributions = importlib.metadata.packages_distributions().get(module, [])
        versions = [f"{other} {importlib.metadata.version(other)}" for other in dict.fromkeys(distributions)]
        return Finding(name, True, f"{', '.join(versions) or 'of unknown version'}, {purpose}")
    needed = _format(drafter) == ("gguf" if module == "llama_cpp" else "onnx")
    return Finding(name, not needed, f"not installed; for {purpose}: {remedy}")


def _format(spec: str) -> str:
    """Of the model at the end of a chain, as far as its name tells; what comes before needs no runtime."""
    model = spec.rsplit(CHAIN, 1)[-1].lower()
    if model in ("none", "", *LOOKUPS) or model.startswith("hf:"):
        return ""  # of a repository only its listing tells, and loading it says what is missing
    return "gguf" if model.endswith(".gguf") else "onnx"


def _providers(asked: str) -> Finding:
    """What ONNX Runtime could draft on here. Which takes how much of a model is known once it is loaded."""
    from edge_client.drafters.base import DrafterError
    from edge_client.drafters.providers import AUTO, CPU, available_providers, parse_provider

    there = available_providers()
    try:
        name = parse_provider(asked).name
    except DrafterError as error:
        return Finding("provider", False, str(error))
    if not there:
        return Finding("provider", name == CPU, "none: ONNX Runtime is not installed")
    unused = [other for other in there if other not in (CPU, name)]
    hint = f"; --provider {AUTO} would try {', '.join(unused)}" if unused and name != AUTO else ""
    missing = (
        "" if name == AUTO or name in there else f", but not {name}: install the build of ONNX Runtime that has it"
    )
    return Finding("provider", not missing, f"{name} asked for; there is {', '.join(there)}{missing}{hint}")


def _drafter(spec: str, threads: int, device: DeviceSettings) -> tuple[Drafter | None, list[Finding]]:
    """Load the drafter and time a few tokens. Whoever gets it closes it."""
    import time

    from edge_client.drafters import load_drafter
    from edge_client.drafters.base import DrafterError

    try:
        drafter = load_drafter(spec, threads=threads, settings=device)
    except DrafterError as error:
        return None, [Finding("drafter", False, str(error))]
    if drafter is None:
        return None, [Finding("drafter", True, "none; answers stream from the verifier alone")]
    drafter.feed([0])
    began = time.perf_counter()
    for _ in range(16):
        likely = drafter.candidates().ids
        drafter.feed([int(likely[0]) if len(likely) else 0])
    ms = (time.perf_counter() - began) * 1000 / 16
    info = drafter.info
    drafter.rollback(0)
    detail = f"{info.name}, {ms:.1f} ms per token, context of {info.context_tokens} tokens"
    if ms > SLOW_MS:
        detail += (
            f"; slower than {SLOW_MS:.0f} ms it hardly ever guesses ahead of a verifier: give it more --threads, take "
            "a smaller model or quantization, or an accelerator (--provider auto, --gpu-layers -1)"
        )
    findings = [Finding("drafter", True, detail)]
    if info.runs_on:
        findings.append(Finding("runs on", not info.notices, "; ".join((info.runs_on, *info.notices))))
    return drafter, findings


def _verifier(verifier: str, model: str, drafter: Drafter | None, security: Security) -> list[Finding]:
    import time

    from edge_client.channel import Channel
    from edge_client.errors import SessionError
    from edge_client.matching import Matching
    from speculation.correspondence import Way

    try:
        channel = Channel(verifier, security=security)
    except ValueError as error:
        return [Finding("verifier", False, str(error))]
    try:
        info = channel.model_info(model, timeout_s=5.0)
        began = time.perf_counter()
        channel.model_info(model, timeout_s=5.0)
        rtt_ms = (time.perf_counter() - began) * 1000
        findings = [Finding("verifier", True, f"{info.model} at {verifier}, round trip {rtt_ms:.1f} ms")]
        findings += _versions(info) + _certificate(verifier, security)
        if drafter is not None and drafter.info.vocabulary_fingerprint != ANY_VOCABULARY:
            found = Matching(channel, drafter, []).find(info)
            findings.append(Finding("vocabulary", found.way is not Way.NONE, found.sentence))
        return findings
    except SessionError as error:
        return [Finding("verifier", False, str(error)), *_certificate(verifier, security)]
    finally:
        channel.close()


def _certificate(verifier: str, security: Security) -> list[Finding]:
    """Of the first address, if TLS is used."""
    if not security.encrypted:
        return []
    return [Finding("certificate", *examine_certificate(verifier.split(",", maxsplit=1)[0].strip(), security))]


def _versions(info: pb.GetModelInfoResponse) -> list[Finding]:
    """Whether both sides mean the same by a message and by a random number."""
    from edge_client.client import PROTOCOL_VERSION
    from speculation.noise import NOISE_VERSION

    findings = []
    theirs = info.protocol_version
    if theirs != PROTOCOL_VERSION:
        older = "device" if theirs > PROTOCOL_VERSION else "verifier"
        sentence = f"the verifier speaks version {theirs} of the contract, this device {PROTOCOL_VERSION}"
        findings.append(Finding("contract", False, f"{sentence}; update the {older}"))
    theirs = info.noise_version
    if theirs != NOISE_VERSION:
        older = "device" if theirs > NOISE_VERSION else "verifier"
        sentence = f"the verifier draws with version {theirs} of the noise, this device with {NOISE_VERSION}"
        findings.append(
            Finding("noise", False, f"{sentence}, so drafts help at temperature 0 only; update the {older}")
        )
    return findings
