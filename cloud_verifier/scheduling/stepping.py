"""How the sessions of a step meet an engine. There is one way for each of the two contracts of engines.

The scheduler decides who is due and how many positions each session gets. A `Stepping` turns that into what its engine
is told, and what the engine answers into log. All state is in the sessions and in the engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from cloud_verifier.scheduling.preemption import Company
from cloud_verifier.scheduling.session import Session
from cloud_verifier.scheduling.token_budget import Want
from speculation.verifier_tree import Picked

NO_GUESSES = Picked(())

Work = TypeVar("Work")  # what the engine is told of one session
Result = TypeVar("Result")  # what it answers


@dataclass(frozen=True)
class Planned(Generic[Work]):
    """A session's part in a step.

    guesses: to be checked. trimmed: how many were left out. due_s: since when the session might have stepped.
    positions: how many it evaluates, guesses included, as far as that is known before the step.
    """

    session: Session
    work: Work
    guesses: Picked
    trimmed: int
    due_s: float
    positions: int


class Evaluated(NamedTuple):
    """Positions of one session in a step: of its log, of the device's guesses, and of the verifier's own."""

    log: int
    guesses: int
    own: int = 0


class Stepping(ABC, Generic[Work, Result]):
    """The way of one engine."""

    @property
    @abstractmethod
    def preemptions(self) -> int:
        """How often a session's keys and values were given up for another's."""

    @abstractmethod
    def seat(self, session: Session, company: Company) -> bool:
        """Whether there is room for a session in the step."""

    @abstractmethod
    def want(self, session: Session) -> Want:
        """What a session that has a seat could use of a step."""

    @abstractmethod
    def plan(self, session: Session, positions: int, due_s: float) -> Planned[Work]:
        """The part of a session that gets so many positions."""

    @abstractmethod
    def step(self, plan: Sequence[Planned[Work]]) -> list[Result | Exception]:
        """One step for all, on the engine's thread. Raises EngineDead."""

    @abstractmethod
    def evaluated(self, planned: Planned[Work], result: Result | Exception) -> Evaluated:
        """What the step evaluated for a session."""

    @abstractmethod
    def apply(self, planned: Planned[Work], result: Result) -> int | None:
        """Turn the engine's answer into log.

        How many guesses of the device were checked; None if nothing was to be written yet.
        """
