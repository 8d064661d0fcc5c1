"""Outages: a Gilbert-Elliott process in continuous time.

The link is good for a time and bad for a time, in turns, both exponentially distributed. It begins in either state with
the probability of finding it there at any moment.
"""

from __future__ import annotations

import bisect
import math
import random


class Outages:
    """When a link is bad; the whole of it follows from the seed. Times from 0 on, asked for in any order."""

    def __init__(self, good_ms: float, bad_ms: float, seed: int) -> None:
        """good_ms, bad_ms: mean times, both positive; both 0 for a link that is always good."""
        self._means = (good_ms, bad_ms)
        self._random = random.Random(f"{seed}/outages")
        self._bad_first = bool(bad_ms) and self._random.random() < bad_ms / (good_ms + bad_ms)
        self._ends: list[float] = [] if bad_ms else [math.inf]  # of the first stay, the second, ...

    def at(self, now_ms: float) -> tuple[bool, float]:
        """Whether the link is bad at this time, and when that changes."""
        while not self._ends or self._ends[-1] <= now_ms:
            begins_ms = self._ends[-1] if self._ends else 0.0
            mean_ms = self._means[self._bad(len(self._ends))]
            self._ends.append(begins_ms + self._random.expovariate(1 / mean_ms))
        index = bisect.bisect_right(self._ends, now_ms)
        return self._bad(index), self._ends[index]

    def _bad(self, index: int) -> bool:
        return self._bad_first == (index % 2 == 0)
