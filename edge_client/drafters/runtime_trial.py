"""Does a runtime survive a model? Found out in a process of its own, before it may end this one.

llama.cpp and ONNX Runtime are native code: a build for another CPU ends the process with SIGILL, a damaged file or a
driver with SIGSEGV, a failed assertion with SIGABRT. No `except` catches that, and an answer must not end with it. So a
model that was never used on this machine is first loaded, fed a few tokens and closed in a fresh interpreter. If that
process dies, the drafter is refused with the signal's name, and answers stream.

**What is tried** is the user's own model with its own settings, not a small model that we bring. Which kernels run
depends on the types and shapes of its tensors (ggml takes AMX for eight types in matrices of certain sizes; 32-bit
floats never come near it), on the provider, on the type of the key-value cache; assertions and drivers see the model,
too. Loading it twice costs time once. It costs no memory: the child has ended before this process loads the model.

**What is remembered**, in the user's cache, is the outcome for this build (files, sizes, times of change), CPU, driver,
model and settings. A refusal holds for a day, for a driver may be well after a restart; `edge-client doctor` tries at
once. Where nothing can be remembered every start tries again; where no interpreter can be started, nothing is tried.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from edge_client.child_process import IN_CHILD, run_module, serve_task
from edge_client.drafters.base import Drafter, DrafterError
from edge_client.drafters.settings import DeviceSettings, FlashAttention, KvType, Weights
from outrider_models.runtime_build import (
    LLAMA_CPP,
    ONNX_RUNTIME,
    cpu_facts,
    file_facts,
    gpu_driver,
    is_installed,
    llama_cpp_reinstall,
    native_libraries,
)
from outrider_models.user_files import replace_file

log = logging.getLogger(__name__)

LEAST_DEADLINE_S = 60.0
REFUSAL_HOLDS_S = 86_400.0
MOST_OUTCOMES = 64
_READ_BYTES_PER_S = 20e6  # of a slow memory card
_COMPILE_S = {"tensorrt": 1800.0, "coreml": 600.0, "qnn": 600.0, "openvino": 600.0}  # providers that compile the model
_BLOCK_TOKENS, _SINGLE_TOKENS = 32, 4  # a batch and single tokens run different kernels
_MODULE = "edge_client.drafters.runtime_trial"
_VERSION = 1  # of the trial: another one counts as never made
_MOST_BYTES = 1 << 20
_BEGUN, _EVALUATED, _REFUSED = "begun", "evaluated", "refused"
_NAMES = {LLAMA_CPP: "llama.cpp", ONNX_RUNTIME: "ONNX Runtime"}
_OWN_SIGNALS = ("SIGILL", "SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGTRAP", "SIGSYS")  # others come from outside
_WORDS = {"SIGILL": "illegal instruction", "SIGSEGV": "segmentation fault", "SIGABRT": "a failed assertion"}


@dataclass(frozen=True)
class Trial:
    """runtime: a package. files: of the model, first the one to load; none tries the import alone."""

    runtime: str
    files: tuple[Path, ...] = ()
    threads: int = 1
    settings: DeviceSettings = field(default_factory=DeviceSettings)

    @property
    def deadline_s(self) -> float:
        """After so long it hangs."""
        size_bytes = sum(file.stat().st_size for file in self.files)
        compiling_s = _COMPILE_S.get(self.settings.provider.partition(":")[0].lower(), 0.0)
        return LEAST_DEADLINE_S + size_bytes / _READ_BYTES_PER_S + compiling_s

    @property
    def key(self) -> str:
        """Equal where the outcome must be. Raises OSError if a file is gone."""
        used = dataclasses.asdict(
            dataclasses.replace(self.settings, memory_limit_bytes=None, offline=False, keeps_conversations=False)
        )
        libraries = [file_facts(path) for path in native_libraries(self.runtime)]
        model = [file_facts(path) for path in self.files]
        facts = [_VERSION, self.runtime, libraries, cpu_facts(), gpu_driver(), model, used]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def check_runtime(trial: Trial) -> None:
    """Raises DrafterError if the runtime ends or hangs the process that uses it so."""
    if os.environ.get(IN_CHILD) or not is_installed(trial.runtime):  # a child may die
        return
    try:
        key, deadline_s = trial.key, trial.deadline_s
    except OSError:  # whoever loads the file says it better
        return
    outcomes = _Outcomes()
    how = outcomes.get(key)
    if how is None:
        how, lasting = _try(trial, deadline_s)
        if lasting:
            outcomes.put(key, how)
    if how:
        raise DrafterError(_refusal(trial, how))


def forget_refusals() -> None:
    """Try again what did not survive."""
    _Outcomes().forget_refusals()


def _try(trial: Trial, deadline_s: float) -> tuple[str, bool]:
    """How the child died, empty if it lives or nobody can tell; and whether that would be so again."""
    name = _NAMES[trial.runtime]
    task = {
        "runtime": trial.runtime,
        "file": str(trial.files[0]) if trial.files else None,
        "threads": trial.threads,
        "settings": dataclasses.asdict(trial.settings),
    }
    began_s = time.monotonic()
    try:
        ended = run_module(_MODULE, json.dumps(task), deadline_s)
    except OSError as error:
        log.debug("%s is not tried before it is used: %s", name, error)
        return "", False
    said = ended.output.split()
    log.info("%s was tried in a process of its own: %s after %.2f s", name, said, time.monotonic() - began_s)
    if ended.returncode is None:
        return f"was not done after {deadline_s:.0f} s", _BEGUN in said
    if _BEGUN not in said:  # it has not come to the runtime
        log.debug("the trial of %s did not begin: %s", name, ended.last_words)
        return "", False
    if signal_name := ended.signal_name:
        words = f" ({_WORDS[signal_name]})" if signal_name in _WORDS else ""
        last = f", saying {ended.last_words[:300]!r}" if signal_name == "SIGABRT" and ended.last_words else ""
        return f"ended with {signal_name}{words}{last}", signal_name in _OWN_SIGNALS
    if _REFUSED in said:  # an error like any other: loading it here says what is wrong
        return "", False
    if ended.returncode == 0 and _EVALUATED in said:
        return "", True
    return f"ended with exit status {ended.returncode}", True


def _refusal(trial: Trial, how: str) -> str:
    name = _NAMES[trial.runtime]
    what = f"trying {trial.files[0]}" if trial.files else "importing it"
    return f"{name} does not survive: {what} in a process of its own {how}; {_advice(trial, how)}"


def _advice(trial: Trial, how: str) -> str:
    settings, again = trial.settings, "`edge-client doctor` tries it again"
    if "SIGKILL" in how:
        return "most likely for lack of memory: take a smaller model or quantization, or less context"
    if "SIGILL" in how and trial.runtime == LLAMA_CPP:
        return f"its build does not fit this CPU, compile it here: {llama_cpp_reinstall()} ({again})"
    if "SIGILL" in how:
        return f"its build needs instructions that this CPU lacks, install another or draft with a .gguf file ({again})"
    if trial.runtime == LLAMA_CPP:
        other = "try --gpu-layers 0, " if settings.gpu_layers else ""
        return f"{other}fetch the model again, or compile llama.cpp anew: {llama_cpp_reinstall()} ({again})"
    other = "" if settings.provider == "cpu" else "try --provider cpu, update the accelerator's driver, "
    return f"{other}fetch the model again, or install another version of ONNX Runtime ({again})"


# --- outcomes, remembered -----------------------------------------------------------------------------------------


class _Outcomes:
    """By key: how a trial ended, empty if well, and when. One small file; what two write at once is tried again."""

    def __init__(self) -> None:
        self._file = platformdirs.user_cache_path("outrider") / "runtime-trials.json"

    def get(self, key: str) -> str | None:
        """None if it was never tried, or so long ago that it may have changed."""
        how, at_s = self._read().get(key, (None, 0.0))
        if how and not 0 <= time.time() - at_s < REFUSAL_HOLDS_S:
            return None
        return how

    def put(self, key: str, how: str) -> None:
        """Keep one, and the latest of the others."""
        kept = self._read()
        kept.pop(key, None)
        kept[key] = how, time.time()
        self._write(dict(list(kept.items())[-MOST_OUTCOMES:]))

    def forget_refusals(self) -> None:
        """Keep those that went well."""
        known = self._read()
        if any(how for how, _ in known.values()):
            self._write({key: (how, at_s) for key, (how, at_s) in known.items() if not how})

    def _read(self) -> dict[str, tuple[str, float]]:
        try:
            with self._file.open("rb") as opened:
                content = json.loads(opened.read(_MOST_BYTES))
            return {str(key): (str(how), float(at_s)) for key, (how, at_s) in content.items()}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):  # not there, or damaged
            return {}

    def _write(self, outcomes: dict[str, tuple[str, float]]) -> None:
        try:
            replace_file(self._file, json.dumps(outcomes, indent=0).encode())
        except OSError as error:
            log.debug("how a runtime fared cannot be kept in %s: %s", self._file, error)


# --- the child ----------------------------------------------------------------------------------------------------


def main() -> None:
    """The task is standard input; standard output says how far it came, a line for each stage."""
    told, answer = serve_task()
    task: dict[str, Any] = json.loads(told)
    with answer:
        print(_BEGUN, file=answer, flush=True)
        try:
            _evaluate(task)
        except Exception as error:  # no death: loading it once more says what is wrong
            print(_REFUSED, file=answer, flush=True)
            log.debug("the trial ended with an error", exc_info=error)
        else:
            print(_EVALUATED, file=answer, flush=True)


def _evaluate(task: dict[str, Any]) -> None:
    """What drafting does, once: read a prompt, guess, go back, guess again."""
    if task["file"] is None:
        importlib.import_module(task["runtime"])
        return
    drafter = _open(task)
    count = max(1, min(_BLOCK_TOKENS, drafter.info.context_tokens - _SINGLE_TOKENS))
    drafter.feed([i % drafter.info.vocabulary_size for i in range(count)])
    for _ in range(_SINGLE_TOKENS):
        drafter.feed([int(drafter.candidates().ids[0])])
    drafter.rollback(count)
    drafter.feed([0])
    drafter.candidates()
    drafter.close()


def _open(task: dict[str, Any]) -> Drafter:
    told = task["settings"]
    settings = dataclasses.replace(
        DeviceSettings(**told),
        weights=Weights(told["weights"]),
        kv_type=KvType(told["kv_type"]),
        flash_attention=FlashAttention(told["flash_attention"]),
    )
    if task["runtime"] == LLAMA_CPP:
        from edge_client.drafters.llama_cpp.drafter import LlamaCppDrafter

        return LlamaCppDrafter(task["file"], threads=task["threads"], settings=settings)
    from edge_client.drafters.onnx.drafter import OnnxDrafter

    return OnnxDrafter(task["file"], threads=task["threads"], settings=settings)


if __name__ == "__main__":
    main()
