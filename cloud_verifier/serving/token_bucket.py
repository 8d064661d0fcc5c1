"""A rate with some slack: how the verifier limits what comes in over time."""

from __future__ import annotations

import time
from collections.abc import Callable


class TokenBucket:
    """Holds `burst` at most, fills at `per_s`, and may be overdrawn: who has taken more waits until it is paid back.

    So a single large amount is never impossible, only followed by a long wait.
    """

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_s, self.burst = per_s, burst
        self._clock = clock
        self._level, self._at_s = burst, clock()

    def take(self, amount: float) -> float:
        """Without a question; returns how long until nothing is owed, 0 if nothing is."""
        self._fill()
        self._level -= amount
        return self._owed_s()

    @property
    def wait_s(self) -> float:
        """How long until nothing is owed; 0 if nothing is."""
        self._fill()
        return self._owed_s()

    def _owed_s(self) -> float:
        if self._level >= 0:
            return 0.0
        return -self._level / self.per_s if self.per_s else float("inf")

    @property
    def full(self) -> bool:
        """Whether it is as a new one."""
        self._fill()
        return self._level >= self.burst

    def _fill(self) -> None:
        now_s = self._clock()
        self._level = min(self.burst, self._level + (now_s - self._at_s) * self.per_s)
        self._at_s = now_s
