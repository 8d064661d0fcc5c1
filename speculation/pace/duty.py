"""A duty cycle: at most this share of the time may be spent drafting, so that a device stays cool and its battery full.

A token bucket over milliseconds: it fills with the clock, at `share` ms per ms, and drafting empties it. A drafter
cannot be interrupted within a token, so the bucket may go below zero; what was overdrawn is then waited for. Once empty
it stays shut until there is enough for a few tokens: a device that woke for each of them would never sleep.
"""

from __future__ import annotations

import math


class DutyCycle:
    """All times in milliseconds, of one clock that the caller reads."""

    def __init__(self, share: float, *, burst_ms: float = 500.0, resume_ms: float = 20.0) -> None:
        """share: of the time, above 0 and at most 1. burst_ms: most that can be saved up while not drafting, and the
        bucket's first content. resume_ms: what an empty bucket must hold to open again. Raises ValueError."""
        if not 0.0 < share <= 1.0:
            raise ValueError(f"the share of time for drafting must be above 0 and at most 1, not {share}")
        self.share, self.burst_ms, self.resume_ms = share, burst_ms, min(resume_ms, burst_ms)
        self._level_ms = burst_ms
        self._at_ms = -math.inf
        self._shut = False

    def spend(self, began_ms: float, now_ms: float) -> None:
        """Drafting took the time from began_ms to now_ms."""
        self._fill(now_ms)
        self._level_ms -= now_ms - began_ms
        self._shut |= self._level_ms <= 0.0

    def wait_ms(self, now_ms: float) -> float:
        """How long drafting must rest from now on; 0 if it need not."""
        self._fill(now_ms)
        if self._shut and self._level_ms >= self.resume_ms:
            self._shut = False
        return (self.resume_ms - self._level_ms) / self.share if self._shut else 0.0

    def _fill(self, now_ms: float) -> None:
        if self._at_ms > -math.inf:
            self._level_ms = min(self.burst_ms, self._level_ms + self.share * max(0.0, now_ms - self._at_ms))
        self._at_ms = max(self._at_ms, now_ms)
