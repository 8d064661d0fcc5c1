"""Speculation beside the target, as a server has it that knows nothing of devices: a small model there draws so many
tokens, the target checks them in one step, and the client is told.

No round trip is between guess and check. What it costs is the small model's time, which the target waits for. The
hits are those of the device's drafter, for a comparison of two places for the same model.
"""

from __future__ import annotations

from dataclasses import dataclass

from netlab.simulator.link import Link
from netlab.simulator.messages import COMMIT_BYTES, COMMIT_TOKEN_BYTES, OPEN_BYTES, PROMPT_TOKEN_BYTES
from netlab.simulator.pair import Answer
from netlab.simulator.run import PROMPT_TOKENS
from netlab.simulator.verifier import VerifierSettings

LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)


@dataclass(frozen=True)
class Streamed:
    """An answer as its client sees it. busy_ms: of target and small model."""

    tokens: int
    ttft_ms: float
    total_ms: float
    target_forwards: int
    busy_ms: float

    @property
    def ms_per_token(self) -> float:
        """Mean over the tokens after the first."""
        return (self.total_ms - self.ttft_ms) / max(1, self.tokens - 1)


def co_located(
    answer: Answer,
    link: Link,
    draft_ms: float,
    length: int,
    settings: VerifierSettings | None = None,
    prompt_tokens: int = PROMPT_TOKENS,
) -> Streamed:
    """An answer, `length` guesses before each step; 0 streams plainly. draft_ms: of a guess of the small model.

    The prompt is read by the target alone: the small model reads it while the first token travels.
    """
    settings = settings or VerifierSettings()
    up, down = link.up, link.down
    at_ms = opened_ms = up.arrival_ms(0.0, OPEN_BYTES + PROMPT_TOKEN_BYTES * prompt_tokens)
    down.arrival_ms(at_ms, OPEN_BYTES + PROMPT_TOKEN_BYTES * prompt_tokens)
    for begin in range(0, prompt_tokens, settings.chunk_tokens):
        at_ms += settings.step_time(1, min(settings.chunk_tokens, prompt_tokens - begin))
    first_ms = last_ms = down.arrival_ms(at_ms, COMMIT_BYTES + COMMIT_TOKEN_BYTES)
    written = forwards = 1
    while written < answer.tokens:
        guesses = min(length, answer.tokens - written - 1)
        right = 0
        while right < guesses and answer.hits[written + right]:
            right += 1
        at_ms += guesses * draft_ms + settings.step_time(1, 1 + guesses)
        last_ms = down.arrival_ms(at_ms, COMMIT_BYTES + COMMIT_TOKEN_BYTES * (right + 1))
        written += right + 1
        forwards += 1
    return Streamed(answer.tokens, first_ms, last_ms, forwards, at_ms - opened_ms)
