"""What the sessions of a trial write: the target's own ids, and where a drafter would have them right."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from netlab.simulator.pair import MARGIN_TOKENS, Answer, heavy_headed

PROMPT_TOKENS = 24  # about those of an opening
LEAST_TOKENS, MOST_TOKENS = 64, 256


@dataclass(frozen=True)
class Written:
    """One answer of the target: its prompt, and its tokens as far as a device may guess past the end."""

    prompt: Sequence[int]
    tokens: Sequence[int]


@dataclass(frozen=True)
class Job:
    """An answer to be had. played: how long it is and where guesses are right."""

    written: Written
    played: Answer

    @property
    def words(self) -> Sequence[int]:
        """What must come."""
        return self.written.tokens[: self.played.tokens]


def described(count: int, seed: int = 0) -> list[Written]:
    """Answers without a target, for the simulator and for tests: even ids below 4,000 that tell of their position."""
    reach = MOST_TOKENS + MARGIN_TOKENS
    return [
        Written(
            [2] + [4 + 2 * n] * (PROMPT_TOKENS - 1),
            [2 * ((7919 * i + 31 * n + seed) % 2000) for i in range(reach)],
        )
        for n in range(count)
    ]


def jobs(written: Sequence[Written], acceptance: float, seed: str) -> Iterator[Job]:
    """One seat's answers, without end: of 64 to 256 tokens, right as a heavy-headed drafter would have them."""
    pair, rng = heavy_headed(acceptance), random.Random(seed)
    for number in itertools.count():
        tokens = rng.randint(LEAST_TOKENS, MOST_TOKENS)
        played = pair.answers(1, tokens, seed=rng.randrange(1 << 30) + number)[0]
        yield Job(rng.choice(written), played)
