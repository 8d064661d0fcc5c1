"""Which guess hung on which, and what became of each, from a diary.

A diary does not name the place where guesses were drawn, but it says where in the log that is and how likely all before
them were right, which nothing else at that position is. So a draw belongs to the end that is as likely.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from speculation.pace.observed import Committed, Drafted, Event


class Fate(Enum):
    """What the log said of a guess."""

    RIGHT = "right"
    WRONG = "wrong"
    UNDECIDED = "never decided"


@dataclass(eq=False)
class Guess:
    """at_ms: when it was drawn. rank: how many guesses stood before it at its place. parent: what it hangs on, None for
    the log. survival: as estimated, of all that was drawn since the log last was not guessed."""

    at_ms: float
    position: int
    rank: int
    survival: float
    parent: Guess | None
    fate: Fate = Fate.UNDECIDED
    children: list[Guess] | None = field(default=None, repr=False)

    @property
    def on_branch(self) -> bool:
        """Whether it hangs on a second guess, or one after it."""
        return self.parent is not None and self.parent.rank > 0


def guesses_of(events: Sequence[Event]) -> list[Guess]:
    """Every guess of a ride, as drawn."""
    found: list[Guess] = []
    root = _end_of_log(-1)
    ends: list[Guess] = []
    for event in events:
        if isinstance(event, Drafted):
            here = [end for end in ends if end.position == event.position - 1]
            if not here:  # the first, or the line was erased
                root = _end_of_log(event.position - 1)
                ends, here = [root], [root]
            likely = math.log(max(event.survival * root.survival, 1e-300))
            tip = min(here, key=lambda end: abs(math.log(max(end.survival, 1e-300)) - likely))
            ends.remove(tip)
            tip.children = [
                Guess(event.at_ms, event.position, rank, tip.survival * probability, None if tip is root else tip)
                for rank, probability in enumerate(event.probabilities)
            ]
            ends += tip.children
            found += tip.children
        elif isinstance(event, Committed):
            root = _committed(root, event)
            ends = _ends(root)
    return found


def _end_of_log(position: int) -> Guess:
    return Guess(0.0, position, 0, 1.0, None)


def _committed(root: Guess, event: Committed) -> Guess:
    """The end of the log after a commit: a guess that was right, or a fresh one if the tree ended or lacked a token."""
    for rank in event.ranks:
        children, right = root.children or [], None
        for child in children:
            child.fate = Fate.RIGHT if child.rank == rank else Fate.WRONG
            right = child if child.rank == rank else right
        if right is None:
            break
        root = right
    last = event.position + event.tokens - 1
    return root if root.position == last else _end_of_log(last)


def _ends(root: Guess) -> list[Guess]:
    ends, stack = [], [root]
    while stack:
        guess = stack.pop()
        if guess.children is None:
            ends.append(guess)
        stack += guess.children or ()
    return ends
