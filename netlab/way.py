"""One direction of a link, and what befalls the bytes of one connection on it: the model that the live relay and the
simulator share.

A burst of bytes enters. It waits for what entered before it, for the rate, and for an outage to end; then it has left.
From there it takes the delay, its own jitter and the stalls of its losses, and never overtakes an earlier one. A `Way`
is shared by all connections of a link; a `Stream` is one connection's. Times are in milliseconds on any clock.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from netlab import jitter
from netlab.link_settings import LinkSettings
from netlab.outages import Outages
from netlab.traces import Replay

PACKET_BYTES = 1460  # payload of an Ethernet packet: losses are drawn per packet


class Way:
    """One direction of a link: its delay, its rate, its outages."""

    def __init__(self, settings: LinkSettings, outages: Outages, *, up: bool, origin_ms: float = 0.0) -> None:
        """outages: those of both directions. up: towards the target. origin_ms: when traces and outages begin."""
        self.up = up
        self._free_ms = -math.inf  # when all that was admitted has left
        self.configure(settings, outages, origin_ms)

    def configure(self, settings: LinkSettings, outages: Outages, origin_ms: float) -> None:
        """Use other settings for what enters from now on; traces and outages begin anew."""
        self.settings = settings
        self._outages = outages
        self._lossy = settings.bad_ms > 0 and settings.bad_loss < 1
        self._stalling = settings.bad_ms > 0 and not self._lossy
        self.loses = settings.loss > 0 or self._lossy
        self._shift_ms = settings.offset_ms - origin_ms
        self._tokens = float(settings.burst_bytes)
        self._constant_delay_ms = settings.delay_up_ms if self.up else settings.delay_down_ms
        self._delays = self._rates = None
        if settings.rtt_trace:
            self._delays = Replay(settings.rtt_trace.times_ms, [rtt / 2 for rtt in settings.rtt_trace.rtts_ms])
        if trace := settings.rate_trace:
            self._rates = Replay(trace.times_ms, [r / 8 for r in (trace.up_kbps if self.up else trace.down_kbps)])
        kbps = settings.up_kbps if self.up else settings.down_kbps
        self._constant_rate = kbps / 8 if kbps else math.inf

    def delay_ms(self, now_ms: float) -> float:
        """How long what leaves now travels, jitter and losses aside."""
        return self._delays.at(now_ms + self._shift_ms)[0] if self._delays else self._constant_delay_ms

    def earliest_ms(self, now_ms: float) -> float:
        """The least time of arrival of anything that enters now or later."""
        passes_ms = self.passes_ms(now_ms)
        best = passes_ms + self.delay_ms(passes_ms)
        if self._delays is None:
            return best
        inside_ms = now_ms + self._shift_ms
        while True:  # what leaves later but travels faster may arrive first
            inside_ms = self._delays.at(inside_ms)[1]
            if inside_ms - self._shift_ms + self._delays.least >= best:
                return best
            passes_ms = self.passes_ms(inside_ms - self._shift_ms)
            best = min(best, passes_ms + self.delay_ms(passes_ms))

    def passes_ms(self, now_ms: float) -> float:
        """The first moment from now on at which anything passes."""
        while True:
            rate, until_ms = self._rate(now_ms)
            if rate:
                return now_ms
            now_ms = until_ms

    def room_ms(self) -> float:
        """When the queue takes more: at once if it has no bound."""
        return self._free_ms - self.settings.queue_ms if self.settings.queue_ms else -math.inf

    def pieces(self, now_ms: float, size_bytes: int) -> Iterator[int]:
        """Sizes that add up to this one. With a rate a piece takes at most a packet or a millisecond."""
        rate = self._rates.at(now_ms + self._shift_ms)[0] if self._rates else self._constant_rate
        most = size_bytes if rate == math.inf else max(PACKET_BYTES, int(rate))
        while size_bytes > 0:
            yield min(most, size_bytes)
            size_bytes -= most

    def leaves_ms(self, now_ms: float, size_bytes: int) -> float:
        """Admit bytes, behind all that were before; returns when the last of them has left."""
        at_ms = max(now_ms, self._free_ms)
        if self.settings.burst_bytes:
            self._refill(at_ms)
        lacking = max(0.0, size_bytes - self._tokens)
        self._tokens = max(0.0, self._tokens - size_bytes)
        while True:
            rate, until_ms = self._rate(at_ms)
            if rate:
                done_ms = at_ms + lacking / rate
                if done_ms <= until_ms:
                    self._free_ms = done_ms
                    return done_ms
                lacking -= (until_ms - at_ms) * rate
            at_ms = until_ms

    def loss(self, now_ms: float) -> float:
        """Share of the packets that leave now which are lost."""
        if self._lossy and self._outages.at(now_ms + self._shift_ms)[0]:
            return self.settings.bad_loss
        return self.settings.loss

    def _rate(self, now_ms: float) -> tuple[float, float]:
        """Bytes per millisecond now, and until when that is so."""
        rate, until_ms = self._constant_rate, math.inf
        if self._rates is not None:
            rate, until_ms = self._rates.at(now_ms + self._shift_ms)
            until_ms -= self._shift_ms
        if self._stalling:
            bad, changes_ms = self._outages.at(now_ms + self._shift_ms)
            rate, until_ms = 0.0 if bad else rate, min(until_ms, changes_ms - self._shift_ms)
        return rate, max(until_ms, math.nextafter(now_ms, math.inf))  # later than now, however it was rounded

    def _refill(self, until_ms: float) -> None:
        """Give the bucket the tokens of an idle time."""
        now_ms, full = self._free_ms, float(self.settings.burst_bytes)
        while now_ms < until_ms and self._tokens < full:
            rate, changes_ms = self._rate(now_ms)
            ends_ms = min(until_ms, changes_ms)
            self._tokens = min(full, self._tokens + rate * (ends_ms - now_ms))
            now_ms = ends_ms


class Stream:
    """The bytes of one connection on a way."""

    def __init__(self, way: Way, number: int, *, opens_ms: float = -math.inf, seed: int | None = None) -> None:
        """number: the connection's, from 1. opens_ms: nothing leaves earlier. seed: None for the settings'."""
        self.way = way
        seed = way.settings.seed if seed is None else seed
        self._chance = random.Random(f"{seed}/{number}/{'up' if way.up else 'down'}").random
        self._opens_ms = opens_ms
        self._late_ms = 0.0
        self._last_ms = -math.inf

    def begin_burst(self) -> None:
        """What enters from now on comes with a jitter of its own."""
        settings = self.way.settings
        self._late_ms = 0.0
        if settings.jitter_ms:
            self._late_ms = settings.jitter_ms * jitter.MODELS[settings.jitter_model](self._chance())

    def arrival_ms(self, now_ms: float, size_bytes: int) -> float:
        """Admit a piece of the burst; returns when it arrives. 0 bytes are a mark, such as the end of the stream."""
        left_ms = self.way.leaves_ms(now_ms, size_bytes) if size_bytes else self.way.passes_ms(now_ms)
        left_ms = max(left_ms, self._opens_ms)
        arrival_ms = left_ms + self.way.delay_ms(left_ms)
        if size_bytes:
            self._late_ms += self._stall_ms(left_ms, size_bytes)
            arrival_ms += self._late_ms
        self._last_ms = max(self._last_ms, arrival_ms)
        return self._last_ms

    def _stall_ms(self, left_ms: float, size_bytes: int) -> float:
        if not self.way.loses:
            return 0.0
        intact = (1 - self.way.loss(left_ms)) ** math.ceil(size_bytes / PACKET_BYTES)
        return 0.0 if self._chance() < intact else self.way.settings.loss_stall_ms
