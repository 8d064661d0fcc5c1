"""How an emulated link behaves, and what it has counted."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class LinkSettings:
    """How a link behaves. Raises ValueError with a sentence for values out of range.

    delay_up_ms, delay_down_ms: least time from end to end, each way; "up" is towards the target. jitter_ms: extra delay
    of every burst, uniform from 0 to this. up_kbps, down_kbps: thousands of bits per second, 0 for no limit.
    loss: share of packets lost; loss_stall_ms: how long a loss holds up its connection. seed: of jitter and losses,
    which depend on it, on the connection's number and on the bursts only. buffer_bytes: most that a connection holds,
    each way, before its sender has to wait (a single read may exceed it); it also bounds the throughput over a long
    delay.
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

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name in ("delay_up_ms", "delay_down_ms", "jitter_ms", "loss_stall_ms"):
            self._require(name, 0, 60_000, "milliseconds")
        for name in ("up_kbps", "down_kbps"):
            self._require(name, 0, 1e9, "kilobits per second, 0 meaning no limit")
        self._require("loss", 0, 0.99, "as the share of packets lost")
        self._require("buffer_bytes", 4096, 1 << 30, "bytes")

    def _require(self, name: str, least: float, most: float, unit: str) -> None:
        value = getattr(self, name)
        if not least <= value <= most:  # NaN fails too
            raise ValueError(f"{name} is {value}, but a link takes {least} to {most:,.12g} {unit}")

    @classmethod
    def of_rtt(cls, rtt_ms: float, *, jitter_ms: float = 0.0, seed: int = 0) -> LinkSettings:
        """A link with a round-trip time of `rtt_ms` milliseconds, half of it each way."""
        return cls(delay_up_ms=rtt_ms / 2, delay_down_ms=rtt_ms / 2, jitter_ms=jitter_ms, seed=seed)


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
