"""What goes wrong, and when: a plan that follows from its seed."""

from __future__ import annotations

import itertools
import random
from dataclasses import asdict, dataclass
from typing import Any

# A verifier that has read a message of the device has not acted on it; one of its own may be written or not.
BOUNDARIES = [
    (moment, kind, count)
    for moment, kinds in (
        ("read", {"open": 2, "draft": 8, "ping": 3, "cancel": 1}),
        ("unwritten", {"opened": 2, "commit": 8, "pong": 3, "finished": 2}),
        ("written", {"opened": 2, "commit": 8, "pong": 3, "finished": 2}),
    )
    for kind, most in kinds.items()
    for count in range(1, most + 1)
]
WEIGHTS = {
    "boundary": 40,  # the link is cut at a message
    "cut": 6,  # the link is cut whenever it may be
    "refuse": 4,  # ... and refuses new connections for a while
    "stall": 8,  # nothing travels for a while
    "half_open": 6,  # one direction dies without a sign
    "rival": 10,  # another stream resumes the session
    "kill": 6,  # the verifier is killed and started again
    "drain": 4,  # it is told to leave, and started again
    "memory": 5,  # a step finds no memory
    "exception": 6,  # the engine fails on one session's input, again and again
    "disk_full": 3,  # the same, and the log cannot be written
    "clock": 4,  # the wall clock jumps
}


@dataclass(frozen=True)
class Fault:
    """after_tokens: how many tokens all devices together are to hear first. The rest is for some kinds only.

    boundary: the moment, the kind of message, and which of them, counted from then on. span_ms: how long it lasts.
    up: which direction. times: how often, or which session.
    """

    kind: str
    after_tokens: int
    boundary: tuple[str, str, int] | None = None
    span_ms: float = 0.0
    up: bool = False
    times: int = 0

    def as_dict(self) -> dict[str, Any]:
        """What of it is said."""
        return {key: value for key, value in asdict(self).items() if value}


def plan(seed: int, faults: int) -> list[Fault]:
    """So many faults. Every boundary comes in turn, every kind as often as its weight says."""
    rng = random.Random(seed)
    boundaries = itertools.cycle(rng.sample(BOUNDARIES, len(BOUNDARIES)))
    return [
        Fault(
            kind,
            after_tokens=rng.randint(1, 60),
            boundary=next(boundaries) if kind == "boundary" else None,
            span_ms=round(rng.uniform(5, 400)) if kind in ("stall", "refuse") else 0.0,
            up=rng.random() < 0.5,
            times=rng.randint(1, 3),
        )
        for kind in rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=faults)
    ]
