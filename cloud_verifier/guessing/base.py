"""The contract of a guesser: where a verifier's own guesses of one session come from.

A guess can be wrong in every way and change no word: it is judged by the rule that judges a device's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

from cloud_verifier.engines.base import Sampler


class OwnGuess(NamedTuple):
    """A token that may come next. confidence: how sure the guesser is of it, if all before it are right."""

    token: int
    confidence: float


class Guesser(ABC):
    """Guesses of one session. One caller at a time, on the event loop: it must take microseconds."""

    @abstractmethod
    def after(self, log: Sequence[int], path: Sequence[int]) -> Generator[OwnGuess, None, None]:
        """Guesses that follow a log and then a path, one after the other, as many as are asked for.

        The log only ever grows between calls. Close the iterator (`contextlib.closing`) before the next call.
        """


GuesserSource = Callable[[Sampler], Guesser]
