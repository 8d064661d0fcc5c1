"""How an emulated link behaves, and what it has counted. `docs/networks.md` tells the model as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from netlab import jitter
from netlab.traces import RateTrace, RttTrace

DAY_MS = 86_400_000.0


@dataclass(frozen=True)
class LinkSettings:
    """How a link behaves. Raises ValueError with a sentence for values out of range. "Up" is towards the target.

    delay_up_ms, delay_down_ms: least time from end to end, each way.
    jitter_ms, jitter_model: extra delay of every burst, which never reorders; its mean is half of jitter_ms in every
    model of `netlab.jitter.MODELS`, and in the uniform one jitter_ms is also the most.
    up_kbps, down_kbps: thousands of bits per second, 0 for no limit. burst_bytes: how much passes at once before the
    rate binds (a token bucket). queue_ms: how far the bytes admitted to a rate may be ahead of it, 0 for no bound; who
    has more to send waits, as TCP's back-pressure makes it.
    loss: share of packets lost; loss_stall_ms: how long a loss holds up its connection.
    good_ms, bad_ms: mean times without and with an outage, 0 for no outages. bad_loss: share of packets lost in an
    outage; 1 for nothing passing until it ends.
    rtt_trace: in place of the delays, half of it each way. rate_trace: in place of the rates; 0 lets nothing pass.
    offset_ms: where in traces and outages the link begins.
    seed: of jitter, losses and outages. Jitter and losses depend on it, on the connection's number and on the bursts
    only; outages on nothing else.
    buffer_bytes: most that a connection holds, each way, before its sender has to wait (a single read may exceed it);
    it also bounds the throughput over a long delay.
    """

    delay_up_ms: float = 0.0
    delay_down_ms: float = 0.0
    jitter_ms: float = 0.0
    up_kbps: float = 0.0
    down_kbps: float = 0.0
    loss: float = 0.0
    loss_stall_ms: float = 200.0
    seed: int = 0
    buffer_bytes: int = 4 << 20
    jitter_model: str = jitter.UNIFORM
    burst_bytes: int = 0
    queue_ms: float = 0.0
    good_ms: float = 0.0
    bad_ms: float = 0.0
    bad_loss: float = 1.0
    rtt_trace: RttTrace | None = None
    rate_trace: RateTrace | None = None
    offset_ms: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name in ("delay_up_ms", "delay_down_ms", "jitter_ms", "loss_stall_ms", "queue_ms"):
            self._require(name, 0, 60_000, "milliseconds")
        for name in ("up_kbps", "down_kbps"):
            self._require(name, 0, 1e9, "kilobits per second, 0 meaning no limit")
        self._require("loss", 0, 0.99, "as the share of packets lost")
        self._require("buffer_bytes", 4096, 1 << 30, "bytes")
        self._require("burst_bytes", 0, 1 << 30, "bytes")
        self._require("bad_loss", 0, 1, "as the share of packets lost in an outage")
        for name in ("good_ms", "bad_ms", "offset_ms"):
            self._require(name, 0, DAY_MS, "milliseconds")
        if self.jitter_model not in jitter.MODELS:
            raise ValueError(f"jitter_model is {self.jitter_model!r}, but a link takes {', '.join(jitter.MODELS)}")
        if (self.good_ms or self.bad_ms) and min(self.good_ms, self.bad_ms) < 1:
            raise ValueError(
                f"good_ms is {self.good_ms:g} and bad_ms {self.bad_ms:g}, but outages take at least 1 of both"
            )

    def _require(self, name: str, least: float, most: float, unit: str) -> None:
        value = getattr(self, name)
        if not least <= value <= most:  # NaN fails too
            raise ValueError(f"{name} is {value}, but a link takes {least} to {most:,.12g} {unit}")

    @classmethod
    def of_rtt(cls, rtt_ms: float, *, jitter_ms: float = 0.0, seed: int = 0) -> LinkSettings:
        """A link with a round-trip time of `rtt_ms` milliseconds, half of it each way."""
        return cls(delay_up_ms=rtt_ms / 2, delay_down_ms=rtt_ms / 2, jitter_ms=jitter_ms, seed=seed)

    def with_rtt(self, rtt_ms: float) -> LinkSettings:
        """The same link at another round-trip time, half of it each way, in place of a trace too."""
        return replace(self, delay_up_ms=rtt_ms / 2, delay_down_ms=rtt_ms / 2, rtt_trace=None)

    @classmethod
    def of_dict(cls, values: Mapping[str, Any]) -> LinkSettings:
        """What `as_dict` gave, maybe by way of JSON."""
        values = dict(values)
        for name, kind in (("rtt_trace", RttTrace), ("rate_trace", RateTrace)):
            if isinstance(trace := values.get(name), Mapping):
                values[name] = kind(**trace)
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def rtt_ms(self) -> float:
        """Least round-trip time; the median of a trace's."""
        return self.rtt_trace.median_ms if self.rtt_trace else self.delay_up_ms + self.delay_down_ms

    @property
    def mean_rtt_ms(self) -> float:
        """With the mean jitter of both ways, but without waiting for rates, losses and outages."""
        return self.rtt_ms + self.jitter_ms

    @property
    def outage_share(self) -> float:
        """Share of the time that the link spends in outages, in the long run."""
        return self.bad_ms / (self.good_ms + self.bad_ms) if self.bad_ms else 0.0


@dataclass(frozen=True)
class LinkCounters:
    """What a link has carried since its start or since its counters were reset.

    bytes_up, bytes_down: payload, counted as it enters the link. connections: accepted. refused: turned away.
    open_connections, held_bytes: at this moment; a reset leaves them alone.
    """

    bytes_up: int = 0
    bytes_down: int = 0
    connections: int = 0
    refused: int = 0
    open_connections: int = 0
    held_bytes: int = 0

    def since(self, earlier: LinkCounters) -> LinkCounters:
        """What was counted after `earlier`."""
        counted = ("bytes_up", "bytes_down", "connections", "refused")
        return replace(self, **{name: getattr(self, name) - getattr(earlier, name) for name in counted})

    def __str__(self) -> str:
        """One line for people."""
        return ", ".join(f"{f.name.replace('_', ' ')} {getattr(self, f.name):,}" for f in fields(self))
