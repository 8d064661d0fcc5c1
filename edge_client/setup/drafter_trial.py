"""Try one drafter: what it takes to load, how long a guess takes, and how many it would have right.

Every trial has a process of its own: memory is that of this drafter alone, one that crashes takes nothing along, and
one that takes too long can be ended. ``python -m edge_client.setup.drafter_trial`` is that process.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from edge_client.bench.measure import peak_bytes, prompt
from edge_client.child_process import run_module, serve_task
from edge_client.drafters import load_drafter
from edge_client.drafters.base import ANY_VOCABULARY, Drafter, DrafterError
from edge_client.drafters.settings import DeviceSettings
from edge_client.drafters.vocabulary.strategy import match
from edge_client.setup.reference_answers import TEMPERATURE, Answer, Reference, as_json, from_json
from edge_client.setup.speed_forecast import expected_ms_per_token
from speculation.sampling import Guess, SamplingParams
from speculation.vocabulary.correspondence import Way

LONGEST_S = 120.0
ABOUT_EQUAL = 1.03  # of expected times: a few answers tell no more
_DAMAGED = "its file may be damaged"
_DEATHS = {
    "SIGKILL": "most likely for lack of memory",
    "SIGILL": "its runtime was built for another CPU: `edge-client doctor` with this drafter says what to do",
}
_UNJUDGED = Answer(tuple(prompt(96)), 64)  # where no verifier has answered: only the time counts


class Accelerator(NamedTuple):
    """What runs a drafter besides the CPU: as `DeviceSettings` has it."""

    provider: str = DeviceSettings().provider
    gpu_layers: int = DeviceSettings().gpu_layers

    @property
    def device(self) -> DeviceSettings:
        """All settings of a device with it."""
        return DeviceSettings(provider=self.provider, gpu_layers=self.gpu_layers)

    @property
    def settings(self) -> dict[str, object]:
        """What a configuration file has to say of it."""
        said: dict[str, object] = {"provider": self.provider} if self.provider != NONE.provider else {}
        return said | ({"gpu-layers": self.gpu_layers} if self.gpu_layers != NONE.gpu_layers else {})


NONE = Accelerator()


@dataclass(frozen=True)
class Tried:
    """How a drafter does here; None where it is not known.

    token_ms: per guess. acceptance: share of the target's tokens that it would have guessed, silence included.
    expected_ms: per token of an answer, with this verifier. trouble: why it cannot be used; empty if it can.
    """

    spec: str
    label: str
    threads: int = 1
    load_ms: float | None = None
    memory_bytes: int | None = None
    token_ms: float | None = None
    acceptance: float | None = None
    expected_ms: float | None = None
    vocabulary: str = ""
    trouble: str = ""


def try_drafter(
    spec: str,
    threads: int,
    reference: Reference | None,
    *,
    label: str = "",
    accelerator: Accelerator = NONE,
    longest_s: float = LONGEST_S,
) -> Tried:
    """In a process of its own. reference: None if the verifier could not be asked."""
    task = {
        "spec": spec,
        "label": label or spec,
        "threads": threads,
        "accelerator": accelerator._asdict(),
        "reference": reference and as_json(reference),
    }
    broken = Tried(spec, label or spec, threads)
    try:
        done = run_module("edge_client.setup.drafter_trial", json.dumps(task), longest_s)
    except OSError as error:
        return dataclasses.replace(broken, trouble=f"it cannot be tried: {error}")
    if done.returncode is None:
        return dataclasses.replace(broken, trouble=f"it was not done with a few answers after {longest_s:.0f} s")
    if done.returncode == 0:
        return Tried(**json.loads(done.output))
    if name := done.signal_name:
        return dataclasses.replace(broken, trouble=f"trying it ended with {name}, {_DEATHS.get(name, _DAMAGED)}")
    return dataclasses.replace(broken, trouble=f"it cannot be tried: {done.last_words or 'no word why'}")


def best(tried: Sequence[Tried]) -> Tried | None:
    """What to draft with: the fastest answers; of about equals what needs the least memory. None if nothing works.

    Where no verifier has answered nobody knows which is fastest: a quick drafter may never be right. Then a lookup,
    which can do no harm, goes before models, and the first before others.
    """
    usable = [one for one in tried if not one.trouble]
    if not usable:
        return None
    judged = [one for one in usable if one.expected_ms is not None]
    if not judged:
        return next((one for one in usable if not one.memory_bytes), usable[0])
    least_ms = min(one.expected_ms or 0.0 for one in judged)
    as_good = [one for one in judged if (one.expected_ms or 0.0) <= ABOUT_EQUAL * least_ms]
    return min(as_good, key=lambda one: one.memory_bytes or 0)


def measure(
    spec: str,
    label: str,
    threads: int,
    reference: Reference | None,
    device: DeviceSettings = DeviceSettings(),  # noqa: B008 - frozen
) -> Tried:
    """What the process does. Raises DrafterError."""
    before_bytes, began_s = peak_bytes(), time.perf_counter()
    loaded = load_drafter(spec, threads=threads, settings=device)
    if loaded is None:
        raise DrafterError(f"{spec!r} names no drafter")
    load_ms = (time.perf_counter() - began_s) * 1e3
    drafter, vocabulary = (loaded, "") if reference is None else _speaking(loaded, reference)
    if reference is not None:
        drafter.adopt_vocabulary(reference.vocabulary_fingerprint, reference.vocabulary_size)
    elif drafter.info.vocabulary_fingerprint == ANY_VOCABULARY:
        drafter.adopt_vocabulary("", 1 << 16)
    answers = reference.answers if reference is not None and reference.answers else (_UNJUDGED,)
    judged = answers != (_UNJUDGED,)
    hits, times_ms = [], []
    for answer in answers:
        right, took_ms = replay(drafter, answer)
        hits.append(right)
        times_ms += took_ms
    after_bytes = peak_bytes()
    if not times_ms:
        raise DrafterError(f"its context of {drafter.info.context_tokens} tokens is too short for any answer")
    token_ms = statistics.fmean(sorted(times_ms)[: max(1, len(times_ms) * 19 // 20)])  # without what other work took
    acceptance = sum(map(sum, hits)) / len(times_ms) if judged else None
    expected_ms = None
    if reference is not None and judged:
        expected_ms = expected_ms_per_token(hits, token_ms, reference.rtt_ms, reference.step_ms)
    memory_bytes = None if before_bytes is None or after_bytes is None else after_bytes - before_bytes
    drafter.close()
    return Tried(spec, label, threads, load_ms, memory_bytes, token_ms, acceptance, expected_ms, vocabulary)


def replay(drafter: Drafter, answer: Answer) -> tuple[list[bool], list[float]]:
    """Where it would have been right in an answer, and the milliseconds of each guess, as far as its context goes."""
    guess = Guess(SamplingParams(temperature=TEMPERATURE), answer.seed)
    log = answer.log[: drafter.info.context_tokens]
    drafter.rollback(0)
    if answer.prompt_tokens >= len(log):
        return [], []
    drafter.feed(log[: answer.prompt_tokens])
    hits, times_ms = [], []
    for position in range(answer.prompt_tokens, len(log)):
        began_s = time.perf_counter()
        found = drafter.candidates()
        guessed = guess(position, *found)[0] if len(found.ids) else None
        drafter.feed([log[position]])
        times_ms.append((time.perf_counter() - began_s) * 1e3)
        hits.append(guessed == log[position])
    return hits, times_ms


def _speaking(drafter: Drafter, reference: Reference) -> tuple[Drafter, str]:
    """What drafts for the target, and a word on how. Raises DrafterError if nothing does."""
    own = drafter.info.vocabulary_fingerprint
    if own == ANY_VOCABULARY:
        return drafter, "any"
    if own == reference.vocabulary_fingerprint:
        return drafter, "the target's"
    if reference.vocabulary is None:
        raise DrafterError("its vocabulary is not the target's, which cannot be had from the verifier")
    found = match(drafter, reference.vocabulary, reference.vocabulary_size)
    if found.speaking is None:
        raise DrafterError(f"its vocabulary cannot be translated: {found.sentence}")
    shared = {Way.RENUMBERED: "renumbered", Way.INTERSECTION: "nearly the target's", Way.TRANSLATED: "translated"}
    return found.speaking(), shared.get(found.way, "the target's")


def main() -> None:
    """The task is standard input, the outcome standard output: JSON both."""
    told, answer = serve_task()
    task: dict[str, Any] = json.loads(told)
    reference = from_json(task["reference"]) if task["reference"] is not None else None
    try:
        device = Accelerator(**task["accelerator"]).device
        outcome = measure(task["spec"], task["label"], task["threads"], reference, device)
    except DrafterError as error:
        outcome = Tried(task["spec"], task["label"], task["threads"], trouble=str(error))
    with answer:
        json.dump(dataclasses.asdict(outcome), answer)


if __name__ == "__main__":
    main()
