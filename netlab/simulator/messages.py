"""What travels, and how large it is.

Sizes are those of the contract's messages with the framing of gRPC and HTTP/2 (5 and 9 bytes), for a vocabulary of up
to 2 million tokens of which ids take two or three bytes; without TLS, TCP and IP. `tests/unit/test_simulator_sizes.py`
holds them against the generated code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

DRAFT_BYTES, DRAFT_TOKEN_BYTES = 37, 4  # of a guess: its id and its confidence
PARENTS_BYTES = 2
COMMIT_BYTES, COMMIT_TOKEN_BYTES = 48, 3
OPEN_BYTES = 120
PROMPT_TOKEN_BYTES = 3


class Draft(NamedTuple):
    """Guesses on their way up.

    patience_ms: the session's from now on; None leaves it. confidences: one for each token, or none. parents: as in the
    contract.
    """

    start: int
    tokens: list[int]
    known_length: int
    sent_at_ms: float
    patience_ms: int | None
    confidences: Sequence[float] = ()
    parents: Sequence[int] = ()

    @property
    def size_bytes(self) -> int:
        """On the wire."""
        forks = PARENTS_BYTES + sum(1 + (offset > 127) for offset in self.parents) if self.parents else 0
        return DRAFT_BYTES + DRAFT_TOKEN_BYTES * len(self.tokens) + forks


class Commit(NamedTuple):
    """News of the log on its way down.

    drafted: which tokens the line had right. echo_sent_at_ms: of the latest draft that had come, None if none had;
    hold_ms: how long ago that was. budget: most guesses the verifier wants. finished: the answer is complete.
    """

    start: int
    tokens: list[int]
    drafted: int
    echo_sent_at_ms: float | None
    hold_ms: float
    queue_ms: float
    forward_ms: float
    budget: int
    finished: bool

    @property
    def size_bytes(self) -> int:
        """On the wire."""
        return COMMIT_BYTES + COMMIT_TOKEN_BYTES * len(self.tokens)
