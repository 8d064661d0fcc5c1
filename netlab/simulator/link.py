"""A simulated link: two directions, each first in, first out, with a delay and a rate.

A message leaves when the one before it has been put on the wire, and never overtakes it, as on the one stream of a
session. Delays may be constant, jittered, or replayed from a trace of round-trip times.
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Sequence
from typing import Protocol


class Delay(Protocol):
    """How long a message travels, one way."""

    def delay_ms(self, now_ms: float) -> float:
        """Of a message that leaves now. Called in the order of time."""

    def earliest_ms(self, now_ms: float) -> float:
        """The least time of arrival of anything that leaves now or later."""


class Constant:
    """Every message takes the same time."""

    def __init__(self, delay_ms: float) -> None:
        self._delay_ms = delay_ms

    def delay_ms(self, now_ms: float) -> float:
        return self._delay_ms

    def earliest_ms(self, now_ms: float) -> float:
        return now_ms + self._delay_ms


class Jitter:
    """A least time and a uniform extra, as `netlab link --jitter-ms` has it."""

    def __init__(self, delay_ms: float, jitter_ms: float, seed: int) -> None:
        self._delay_ms, self._jitter_ms = delay_ms, jitter_ms
        self._random = random.Random(seed).random

    def delay_ms(self, now_ms: float) -> float:
        return self._delay_ms + self._jitter_ms * self._random()

    def earliest_ms(self, now_ms: float) -> float:
        return now_ms + self._delay_ms


class Replay:
    """Half of the round-trip time that a trace held at that moment.

    The trace's value holds until the next one; the trace repeats.
    """

    def __init__(self, times_ms: Sequence[float], rtts_ms: Sequence[float], offset_ms: float = 0.0) -> None:
        """times_ms: rising, from 0. offset_ms: where in the trace the simulation begins."""
        self._times, self._delays = list(times_ms), [rtt / 2 for rtt in rtts_ms]
        gap = self._times[-1] - self._times[-2] if len(self._times) > 1 else 1.0
        self._period = self._times[-1] + gap
        self._offset = offset_ms
        self._least = min(self._delays)

    def delay_ms(self, now_ms: float) -> float:
        return self._delays[bisect.bisect_right(self._times, (now_ms + self._offset) % self._period) - 1]

    def earliest_ms(self, now_ms: float) -> float:
        best = now_ms + self.delay_ms(now_ms)
        turn, inside = divmod(now_ms + self._offset, self._period)
        index = bisect.bisect_right(self._times, inside)
        while True:  # a later, quicker message may arrive first; none can once its departure alone is too late
            if index == len(self._times):
                turn, index = turn + 1, 0
            departs = turn * self._period + self._times[index] - self._offset
            if departs + self._least >= best:
                return best
            best = min(best, departs + self._delays[index])
            index += 1


class Direction:
    """One way of a link. messages, bytes: carried so far."""

    def __init__(self, delay: Delay, kbps: float = 0.0) -> None:
        """kbps: thousands of bits per second, 0 for no limit."""
        self.delay = delay
        self._ms_per_byte = 8 / kbps if kbps else 0.0
        self._free_ms = self._last_ms = -math.inf
        self.messages = self.bytes = 0

    def arrival_ms(self, now_ms: float, size_bytes: int) -> float:
        """When a message of this size, sent now, has arrived."""
        self.messages += 1
        self.bytes += size_bytes
        self._free_ms = gone_ms = max(now_ms, self._free_ms) + size_bytes * self._ms_per_byte
        self._last_ms = max(self._last_ms, gone_ms + self.delay.delay_ms(gone_ms))
        return self._last_ms


class Link:
    """Both directions of one device's link; "up" is towards the verifier."""

    def __init__(self, up: Direction, down: Direction) -> None:
        self.up, self.down = up, down

    @classmethod
    def of_rtt(cls, rtt_ms: float, *, jitter_ms: float = 0.0, seed: int = 0) -> Link:
        """Half of the round trip each way; jitter_ms: most extra delay of a message, each way."""
        if jitter_ms:
            up: Delay = Jitter(rtt_ms / 2, jitter_ms, 2 * seed)
            return cls(Direction(up), Direction(Jitter(rtt_ms / 2, jitter_ms, 2 * seed + 1)))
        return cls(Direction(Constant(rtt_ms / 2)), Direction(Constant(rtt_ms / 2)))
