"""Which pace an answer rides with, and which answers share what theirs have measured."""

from __future__ import annotations

import threading
from collections.abc import Callable

from speculation.pace import policies
from speculation.pace.base import Objective, Pace, Streaming

KEPT = 16  # of what was measured, by model


class Paces:
    """Of one client."""

    def __init__(self, pace: str | Callable[[], Pace], objective: Objective = Objective.LATENCY) -> None:
        """pace: a policy by name, or what makes one pace per session. objective: of a policy by name.

        Raises ValueError for an unknown policy.
        """
        self._pace, self._objective = pace, objective
        self._lock = threading.Lock()
        self._shared: dict[object, Callable[[], Pace]] = {}
        if isinstance(pace, str):
            policies.find(pace, objective)

    def make(self, model: str, drafter: object) -> Pace:
        """The pace of an answer by this model with this drafter: how often guesses are right, and how long they take,
        says nothing of another pair."""
        if not isinstance(self._pace, str):
            return self._pace()
        key = model, drafter
        with self._lock:  # taken out and put back: the one that was used last stays longest
            make = self._shared.pop(key, None) or policies.find(self._pace, self._objective)
            self._shared[key] = make
            if len(self._shared) > KEPT:
                del self._shared[next(iter(self._shared))]
        return make()

    @property
    def same_without_drafter(self) -> bool:
        """Whether an answer rides with the same pace before it has a drafter."""
        return not isinstance(self._pace, str)

    def without_drafter(self) -> Pace:
        """The pace of an answer that has no drafter yet. Nothing will be drafted: the verifier need not wait for it."""
        return Streaming() if isinstance(self._pace, str) else self._pace()
