"""The contract of a guesser: where a verifier's own guesses of one session come from.

A guess can be wrong in every way and change no word: it is judged by the rule that judges a device's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cloud_verifier.engines.base import Sampler


class OwnGuess(NamedTuple):
    """A token that may come next. confidence: how sure the guesser is of it, if all before it are right."""

    token: int
    confidence: float


class Guesser(ABC):
    """Guesses of one session. One caller at a time, on the event loop: it must take microseconds.

    batch: where a source draws guesses of many sessions at once, ahead of a step; None if there is nothing to draw.
    """

    @property
    def batch(self) -> BatchedSource | None:
        """See above."""
        return None

    @abstractmethod
    def after(self, log: Sequence[int], path: Sequence[int]) -> Generator[OwnGuess, None, None]:
        """Guesses that follow a log and then a path, one after the other, as many as are asked for.

        The log only ever grows between calls. Close the iterator (`contextlib.closing`) before the next call.
        """

    def close(self) -> None:  # noqa: B027 - optional
        """Free what it holds; the session is over."""


class Start(NamedTuple):
    """A place on a device's path. survival: of a guess of the source's own there, unless the device says the same.

    said: of the tokens that the device says there, the probability that they and all before them are right.
    """

    survival: float
    said: Mapping[int, float]


@dataclass(frozen=True)
class Job:
    """A session for which guesses are drawn after its log, and beside a path that its device has drawn there.

    starts: after the log and after each token of the path. most: guesses that a step would take. probability: of the
    guess at this place of a line of its own, if all before it are right.
    """

    guesser: Guesser
    log: Sequence[int]
    path: Sequence[int]
    starts: Sequence[Start]
    most: int
    probability: Callable[[int], float]


# Whether to draw another guess for some sessions: the sum of their survivals, how many they are, seconds it takes.
Worth = Callable[[float, int, float], bool]


class BatchedSource(ABC):
    """Draws guesses of many sessions at once, on a thread of its own, mostly between two steps of the target.

    If that takes long, steps go on meanwhile and logs grow: what it says then is of no use, and it is asked for nothing
    before it is back.
    """

    @abstractmethod
    def draw(self, jobs: Sequence[Job], worth: Worth) -> None:
        """Draw, and keep what was drawn for the guessers to say."""

    @abstractmethod
    def failed(self, error: Exception) -> None:
        """It raised: its guessers are not asked again."""


GuesserSource = Callable[[Sampler], Guesser]
