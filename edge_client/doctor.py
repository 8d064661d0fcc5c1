"""What a device has for drafting, whether the verifier answers, and what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import time
from pathlib import Path
from typing import NamedTuple

from outrider.v1 import verifier_pb2 as pb

from edge_client.drafters.base import ANY_VOCABULARY, Drafter
from edge_client.drafters.runtime_trial import forget_refusals
from edge_client.drafters.settings import DeviceSettings
from edge_client.drafters.sources.spec import CHAIN, LOOKUPS
from edge_client.link.certificates import Fault, examine_certificate, examine_own
from edge_client.link.security import Security
from outrider_models.file_choice import listed
from outrider_models.runtime_build import (
    DISTRIBUTIONS,
    LLAMA_CPP,
    ONNX_RUNTIME,
    has_amx,
    llama_cpp_reinstall,
    runtime_install,
    uses_amx,
)

RUNTIMES = {ONNX_RUNTIME: "ONNX drafters", LLAMA_CPP: "GGUF drafters"}
SLOW_MS = 40.0  # per guess: no faster than most verifiers write by themselves
FAR_MS = 150.0
_DAY_S = 86_400.0


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
    """Look at runtimes, the drafter and the way to the verifier. A runtime is only missed if the drafter needs it.

    A runtime that did not survive before is tried again.
    """
    forget_refusals()
    findings = [_runtime(module, drafter) for module in RUNTIMES]
    findings.append(Finding("threads", True, f"{threads} of {os.cpu_count()} CPUs for the drafter"))
    findings.append(_memory())
    findings.append(_providers(device.provider))
    loaded, of_drafter = _drafter(drafter, threads, device)
    findings += of_drafter
    findings += _verifier(verifier, model, loaded, security)
    if loaded is not None:
        loaded.close()
    return findings


def _runtime(module: str, drafter: str) -> Finding:
    name = DISTRIBUTIONS.get(module, module)
    purpose = RUNTIMES[module]
    if importlib.util.find_spec(module):
        # onnxruntime-gpu, -qnn and their like bring the same module under their own name.
        distributions = importlib.metadata.packages_distributions().get(module, [])
        versions = [f"{other} {importlib.metadata.version(other)}" for other in dict.fromkeys(distributions)]
        amx = _amx() if module == LLAMA_CPP else ""
        return Finding(name, True, f"{', '.join(versions) or 'of unknown version'}, {purpose}{amx}")
    needed = _format(drafter) == ("gguf" if module == LLAMA_CPP else "onnx")
    return Finding(name, not needed, f"not installed; for {purpose}: {runtime_install(module)}")


def _amx() -> str:
    """A build for AMX works or dies by its compiler; whether this one dies, its trial with a drafter tells."""
    if not has_amx() or not uses_amx():
        return ""
    return (
        "; built for this CPU's AMX, which gcc 12 compiles wrongly: if a drafter ends with SIGILL, compile it anew: "
        f"{llama_cpp_reinstall()}"
    )


def _format(spec: str) -> str:
    """Of the model at the end of a chain, as far as its name tells; what comes before needs no runtime."""
    model = spec.rsplit(CHAIN, 1)[-1].lower()
    if model in ("none", "", *LOOKUPS) or model.startswith("hf:"):
        return ""  # of a repository only its listing tells, and loading it says what is missing
    return "gguf" if model.endswith(".gguf") else "onnx"


def _providers(asked: str) -> Finding:
    """What ONNX Runtime could draft on here. Which takes how much of a model is known once it is loaded."""
    from edge_client.drafters.base import DrafterError
    from edge_client.drafters.onnx.providers import AUTO, CPU, available_providers, parse_provider

    try:
        there = available_providers()
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
    from edge_client.bench.measure import peak_bytes
    from edge_client.drafters import load_drafter
    from edge_client.drafters.base import DrafterError
    from outrider_models.memory_check import readable

    before_bytes = peak_bytes()

    try:
        drafter = load_drafter(spec, threads=threads, settings=device)
    except DrafterError as error:
        return None, [Finding("drafter", False, str(error))]
    if drafter is None:
        return None, [Finding("drafter", True, "none: answers stream from the verifier alone"), _models()]
    drafter.feed([0])
    began = time.perf_counter()
    for _ in range(16):
        likely = drafter.candidates().ids
        drafter.feed([int(likely[0]) if len(likely) else 0])
    ms = (time.perf_counter() - began) * 1000 / 16
    info = drafter.info
    drafter.rollback(0)
    after_bytes = peak_bytes()
    took = f", {readable(after_bytes - before_bytes)} of memory" if before_bytes and after_bytes else ""
    token = f"{ms:.1f} ms" if ms >= 0.1 else "less than 0.1 ms"
    detail = f"{info.name}, {token} per token, context of {info.context_tokens:,} tokens{took}"
    if ms > SLOW_MS:
        detail += (
            f"; slower than {SLOW_MS:.0f} ms it hardly ever guesses ahead of a verifier: give it more --threads, take "
            "a smaller model or quantization, or an accelerator (--provider auto, --gpu-layers -1)"
        )
    findings = [Finding("drafter", True, detail)]
    if info.runs_on:
        findings.append(Finding("runs on", not info.notices, "; ".join((info.runs_on, *info.notices))))
    return drafter, findings


def _models() -> Finding:
    """What this device could draft with."""
    from edge_client.drafters.sources.model_search import search

    models, _ = search()
    there = f"; models here: {listed([model.label for model in models])}" if models else ""
    detail = f"ngram, which needs no model{there}; `edge-client setup` measures them and takes the best"
    return Finding("could draft with", True, detail)


def _memory() -> Finding:
    from outrider_models.memory_check import available_bytes, readable

    free_bytes = available_bytes()
    return Finding(
        "memory", True, f"{readable(free_bytes)} free" if free_bytes is not None else "nobody tells how much"
    )


def _verifier(verifier: str, model: str, drafter: Drafter | None, security: Security) -> list[Finding]:
    from edge_client.link.reachability import Refusal, reach

    answer = reach(verifier, model, security)
    if isinstance(answer, Refusal):
        others = [finding for finding in _certificates(verifier, security) if finding.detail != answer.sentence]
        return [Finding("verifier", False, answer.sentence), *others]
    info = answer.info
    findings = [Finding("verifier", True, f"{info.model} at {verifier}"), _round_trip(answer.rtt_ms)]
    findings += _versions(info) + _certificates(verifier, security)
    if drafter is not None and drafter.info.vocabulary_fingerprint != ANY_VOCABULARY:
        findings.append(_vocabulary(verifier, drafter, info, security))
    return findings


def _round_trip(rtt_ms: float) -> Finding:
    if rtt_ms > FAR_MS:
        return Finding(
            "round trip", True, f"{rtt_ms:.0f} ms, which is long: only a drafter that is mostly right gains much"
        )
    return Finding("round trip", True, f"{rtt_ms:.1f} ms")


def _vocabulary(verifier: str, drafter: Drafter, info: pb.GetModelInfoResponse, security: Security) -> Finding:
    from edge_client.link.channel import Channel
    from edge_client.riding.vocabulary_matching import VocabularyMatching
    from speculation.vocabulary.correspondence import Way

    channel = Channel(verifier, security=security)
    try:
        found = VocabularyMatching(channel, drafter, []).find(info)
    finally:
        channel.close()
    return Finding("vocabulary", found.way is not Way.NONE, found.sentence)


def _certificates(verifier: str, security: Security) -> list[Finding]:
    """The verifier's, at its first address, and the device's own, if TLS is used."""
    if not security.encrypted:
        return []
    address = verifier.split(",", maxsplit=1)[0].strip()
    try:
        verdict = examine_certificate(address, security)
        findings = [Finding("certificate", verdict.ok, verdict.sentence)]
        if security.certificate is not None and verdict.fault is not Fault.OUT_OF_DATE:
            own = examine_own(security)
            findings.append(Finding("own certificate", own.ok, own.sentence))
    except ValueError as error:  # files that are none
        return [Finding("certificate", False, str(error))]
    return [*findings, _clock()]


def _clock() -> Finding:
    """Certificates are judged by it. Boards without a battery wake up in a year long past."""
    now_s = time.time()
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now_s))
    installed_s = Path(__file__).stat().st_mtime
    if now_s < installed_s - _DAY_S:
        return Finding("clock", False, f"{now}, which is before Outrider was installed here: set it, or let NTP do so")
    return Finding("clock", True, now)


def _versions(info: pb.GetModelInfoResponse) -> list[Finding]:
    """Whether both sides mean the same by a message and by a random number."""
    from edge_client.link.open_message import PROTOCOL_VERSION
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
