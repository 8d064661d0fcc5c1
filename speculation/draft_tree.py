"""The log and the draft tree: what device and verifier have in common.

The log is the text as decided: prompt and answer, append-only, owned by the verifier. The draft tree is the device's
guess of how the log goes on. Its root is the end of the log; every other node is a guessed token, and a path from the
root is a text that may follow. A tree without forks is a *line*. Positions count from the first token of the prompt.

When the log grows, the root moves along the tokens that it says. What hangs on another token is dead; what the log has
reached is spent. `verifier_tree` and `device_tree` keep the two ends of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

MAX_LOOKAHEAD = 1024  # most that any verifier takes of a tree past its log, and of one draft
UNSAID_CONFIDENCE = 0.75  # of a guess whose device does not say how sure it is


class DraftError(ValueError):
    """A message that cannot be true. The message says what was claimed and what is known."""


class Outcome(NamedTuple):
    """What became of one guess: its depth when drawn, how sure the drafter was, and whether the log says the same.

    rank: 0 for the guess that the drafter took for the likeliest at its position, 1 for the next, and so on.
    """

    depth: int
    confidence: float
    right: bool
    rank: int = 0


def news_of(log: Sequence[int], start: int, tokens: Sequence[int]) -> list[int]:
    """The tokens of a commit that the log does not have yet. A repeated commit brings none.

    Raises DraftError for a gap, or if the log is said to read differently than before.
    """
    if not 0 <= start <= len(log):
        raise DraftError(f"a commit starts at {start}, but the log is only known up to {len(log)}")
    known = min(len(tokens), len(log) - start)
    if any(tokens[i] != log[start + i] for i in range(known)):
        raise DraftError(f"the verifier now tells another log at or after position {start}")
    return list(tokens[known:])
