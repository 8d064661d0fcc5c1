"""A simulated link: `netlab.way`, the very model of the live link, on the simulator's clock.

A message is one burst on the one connection of a session. So a bounded queue (`queue_ms`) changes nothing here: who
waits before it and who waits in it arrives at the same time.
"""

from __future__ import annotations

import math

from netlab.link_settings import LinkSettings
from netlab.outages import Outages
from netlab.way import Stream, Way

APART_MS = 1e-9  # between arrivals, so that no rounding of the simulator's clock swaps two of one moment


class Direction:
    """One way of a link, first in, first out. messages, bytes: carried so far."""

    def __init__(self, way: Way, seed: int) -> None:
        self.delay = way  # for the oracle: `delay.earliest_ms` is the least time of arrival of anything later
        self._stream = Stream(way, 1, seed=seed)
        self._last_ms = -math.inf
        self.messages = self.bytes = 0

    def arrival_ms(self, now_ms: float, size_bytes: int) -> float:
        """When a message of this size, sent now, has arrived."""
        self.messages += 1
        self.bytes += size_bytes
        self._stream.begin_burst()
        arrival_ms = now_ms
        for piece in self.delay.pieces(now_ms, size_bytes):
            arrival_ms = self._stream.arrival_ms(now_ms, piece)
        self._last_ms = max(self._last_ms + APART_MS, arrival_ms)
        return self._last_ms


class Link:
    """Both directions of one device's link; "up" is towards the verifier."""

    def __init__(self, up: Direction, down: Direction) -> None:
        self.up, self.down = up, down

    @classmethod
    def of_settings(cls, settings: LinkSettings, *, offset_ms: float = 0.0, seed: int | None = None) -> Link:
        """A link as a live one of these settings would be for its first connection.

        offset_ms: where in traces and outages it begins, beyond the settings' own. seed: in place of the settings'.
        """
        seed = settings.seed if seed is None else seed
        outages = Outages(settings.good_ms, settings.bad_ms, seed)
        up, down = (Way(settings, outages, up=up, origin_ms=-offset_ms) for up in (True, False))
        return cls(Direction(up, seed), Direction(down, seed))

    @classmethod
    def of_rtt(cls, rtt_ms: float, *, jitter_ms: float = 0.0, seed: int = 0) -> Link:
        """Half of the round trip each way; jitter_ms: most extra delay of a message, each way."""
        return cls.of_settings(LinkSettings.of_rtt(rtt_ms, jitter_ms=jitter_ms, seed=seed))
