"""A network link between any two programs, emulated by a TCP proxy.

Each direction has a delay, jitter that never reorders, a bandwidth that all connections share, losses and outages, or
replays a trace; `netlab.way` is the model, and `docs/networks.md` tells it. A program sees a loss under TCP as a stall
of its connection, so that is what a loss does here. A new connection waits one round trip before its first byte leaves,
as for TCP's handshake. Slow start and congestion control are not emulated.

Nothing arrives early. How late it arrives depends on the event loop's timers and on what else the loop does: run a
`Link` on `netlab.event_loop.precise_event_loop`, or let `netlab.link_process.LinkProcess` give it a process of its own.
"""

from __future__ import annotations

import asyncio
import math
from typing import Self

from netlab.link_settings import LinkCounters, LinkSettings
from netlab.relay import Connection, Refusal, Wire

__all__ = ["Link", "LinkCounters", "LinkSettings"]

Address = tuple[str, int]


class Link:
    """A link from a local port to a target. All methods belong to the event loop that started it."""

    def __init__(
        self, target: Address, settings: LinkSettings | None = None, *, listen: Address = ("127.0.0.1", 0)
    ) -> None:
        """target: host and port that connections lead to. listen: where to accept them; port 0 takes a free one."""
        self._target = target
        self._listen = listen
        self._wire = Wire(settings or LinkSettings())
        self._server: asyncio.Server | None = None
        self._refusing = False
        self._accepted = 0
        self._refused = 0
        self._counted_before = LinkCounters()

    async def start(self) -> None:
        """Accept connections. Raises OSError if the address cannot be listened on."""
        self._wire.closed = False
        self._wire.configure(self._wire.settings, asyncio.get_running_loop().time())
        self._server = await asyncio.get_running_loop().create_server(self._accept, *self._listen)

    async def stop(self) -> None:
        """Accept no more connections and cut those there are."""
        if self._server is None:
            return
        self._wire.closed = True
        self._server.close()
        self.cut()
        await self._server.wait_closed()
        self._server = None

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop."""
        await self.stop()

    @property
    def port(self) -> int:
        """Port that connections are accepted on. Raises RuntimeError unless the link is started."""
        if self._server is None:
            raise RuntimeError("the link has a port only while it is started")
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def settings(self) -> LinkSettings:
        """How the link behaves now."""
        return self._wire.settings

    def configure(self, settings: LinkSettings) -> None:
        """Change the link while it runs.

        What is on the way keeps its times; a new seed is for new connections; traces and outages begin anew.
        """
        self._wire.configure(settings, asyncio.get_running_loop().time())

    def counters(self) -> LinkCounters:
        """What the link has carried since its start or since `reset_counters`."""
        return self._totals().since(self._counted_before)

    def reset_counters(self) -> None:
        """Count from zero again."""
        self._counted_before = self._totals()

    def cut(self) -> None:
        """Reset every present connection at both ends; what is on the way is lost. New ones are taken as before."""
        for connection in list(self._wire.connections):
            connection.abort()

    def half_open(self, *, up: bool) -> None:
        """Deliver nothing more in one direction on the present connections, without a sign; new ones are whole."""
        for connection in list(self._wire.connections):
            connection.mute(up=up)

    def refuse(self, refusing: bool = True) -> None:
        """Reset new connections as soon as they are made, or take them again. Present ones go on."""
        self._refusing = refusing

    def stall(self, duration_ms: float) -> None:
        """Deliver nothing for so long, either way; what has come due by then is delivered at once."""
        until = asyncio.get_running_loop().time() + duration_ms / 1000
        self._wire.stalled_until = max(self._wire.stalled_until, until)

    def pause(self) -> None:
        """Deliver nothing until `resume`."""
        self._wire.stalled_until = math.inf

    def resume(self) -> None:
        """End a pause or a stall."""
        self._wire.stalled_until = 0.0
        for connection in list(self._wire.connections):
            connection.deliver()

    def _accept(self) -> asyncio.Protocol:
        if self._refusing:
            self._refused += 1
            return Refusal()
        self._accepted += 1
        return Connection(self._wire, self._target, self._accepted).device_end

    def _totals(self) -> LinkCounters:
        return LinkCounters(
            bytes_up=self._wire.up.bytes,
            bytes_down=self._wire.down.bytes,
            connections=self._accepted,
            refused=self._refused,
            open_connections=len(self._wire.connections),
            held_bytes=sum(connection.held_bytes for connection in self._wire.connections),
        )
