"""What a trial found, and whether its sessions were held at the objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.load.seat import Notes

MODES = ("streaming", "latency", "balanced", "capacity")


@dataclass(frozen=True)
class Goal:
    """objective_ms: time per output token that 95 of 100 sessions keep. ttft_ms: time to the first token, likewise."""

    objective_ms: float
    ttft_ms: float


@dataclass(frozen=True)
class Outcome:
    """One trial: so many sessions in one mode, watched after a warm-up. Times in milliseconds.

    tpot_p50, tpot_p95: over sessions, of the mean time per output token: the time from a session's first to its last
    token of each answer, as far as it was watched, over the tokens that came in it. ttft_p95: over answers. acceptance:
    of decided guesses. answers: complete ones; wrong_words: those of them that were not the target's own. busy: share
    of the time that the emulated GPU worked. trouble: what makes the trial worthless, if anything.
    """

    mode: str
    sessions: int
    tpot_p50: float
    tpot_p95: float
    ttft_p95: float
    tokens_per_forward: float
    tokens_per_s: float
    acceptance: float
    answers: int
    wrong_words: int
    busy: float
    step_ms: float
    trouble: str = ""

    def held(self, goal: Goal) -> bool:
        """Whether nobody was kept waiting for longer than agreed."""
        return self.tpot_p95 <= goal.objective_ms and self.ttft_p95 <= goal.ttft_ms

    def as_json(self) -> dict[str, Any]:
        """Rounded."""
        return {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(self).items()}


def outcome(
    mode: str,
    seats: Sequence[Sequence[Notes]],
    window_ms: tuple[float, float],
    busy: float,
    step_ms: float,
    trouble: str = "",
) -> Outcome:
    """From every seat's notes. Raises ValueError if nothing was decoded in the window."""
    begin, end = window_ms
    tpot_ms: list[float] = []
    ttft_ms: list[float] = []
    tokens = forwards = 0
    for notes in seats:
        decoding_ms, decoded = 0.0, 0
        for answer in notes:
            watched = [(at, count) for at, count in answer.arrivals if begin <= at < end]
            tokens += sum(count for _, count in watched)
            forwards += len(watched)
            if begin <= answer.asked_ms < end and answer.arrivals:
                ttft_ms.append(answer.arrivals[0][0] - answer.asked_ms)
            if len(watched) > 1:
                decoding_ms += watched[-1][0] - watched[0][0]
                decoded += sum(count for _, count in watched[1:])
        # A session that got next to nothing waited all the time.
        tpot_ms.append(decoding_ms / decoded if decoded else end - begin)
    if not tokens:
        raise ValueError("no token came while the trial was watched; watch it for longer")
    complete = [answer for notes in seats for answer in notes if answer.same_words is not None]
    guesses = sum(answer.decided for answer in complete)
    return Outcome(
        mode=mode,
        sessions=len(seats),
        tpot_p50=float(np.median(tpot_ms)),
        tpot_p95=float(np.percentile(tpot_ms, 95)),
        ttft_p95=float(np.percentile(ttft_ms, 95)) if ttft_ms else 0.0,
        tokens_per_forward=tokens / forwards,
        tokens_per_s=tokens * 1e3 / (end - begin),
        acceptance=sum(answer.right for answer in complete) / guesses if guesses else 0.0,
        answers=len(complete),
        wrong_words=sum(not answer.same_words for answer in complete),
        busy=busy,
        step_ms=step_ms,
        trouble=trouble,
    )
