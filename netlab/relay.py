"""One connection through an emulated link: what enters at one end leaves at the other, later.

A `Connection` has two ends and, between them, a lane each way: a queue of pieces with the time each is due at the far
end. There are no tasks and no polling; a lane sets one timer for its oldest piece, so an idle link costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
from collections import deque
from typing import cast

from netlab.link_settings import LinkSettings
from netlab.outages import Outages
from netlab.way import Stream, Way

WRITE_BUFFER_BYTES = 64 << 10
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 seconds; closing then sends RST
END = b""  # in a lane's queue: the sender has closed its side
RESET = None  # in a lane's queue: the sender's connection broke


class Wire:
    """What all connections of a link share: its settings, its two directions, its stalls."""

    def __init__(self, settings: LinkSettings) -> None:
        outages = Outages(settings.good_ms, settings.bad_ms, settings.seed)
        self.up = Direction(Way(settings, outages, up=True))
        self.down = Direction(Way(settings, outages, up=False))
        self.connections: set[Connection] = set()
        self.stalled_until = 0.0
        self.closed = False
        self.settings = settings

    def configure(self, settings: LinkSettings, now: float) -> None:
        """Use other settings for what enters from now on; traces and outages begin anew."""
        self.settings = settings
        outages = Outages(settings.good_ms, settings.bad_ms, settings.seed)
        for direction in (self.up, self.down):
            direction.way.configure(settings, outages, now * 1000)
            direction.admit(now)


class Direction:
    """One way through the link: what all connections share of it, the count of its bytes, and who waits to enter."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.bytes = 0
        self._waiting: deque[_Lane] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, lane: _Lane, now: float) -> None:
        """A lane has something to send."""
        if lane not in self._waiting:
            self._waiting.append(lane)
        self.admit(now)

    def admit(self, now: float) -> None:
        """Let in what the queue has room for, a piece of every lane in turn; the rest stays with its senders."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            room_at = self.way.room_ms() / 1000
            if room_at > now:
                self._timer = asyncio.get_running_loop().call_at(room_at, self._has_room)
                break
            lane = self._waiting.popleft()
            if lane.enter_one(now):
                self._waiting.append(lane)

    def _has_room(self) -> None:
        self.admit(asyncio.get_running_loop().time())


class Connection:
    """One connection of a link."""

    def __init__(self, wire: Wire, target: tuple[str, int], number: int) -> None:
        self._wire = wire
        self._target = target
        self._connecting: asyncio.Task[None] | None = None
        self._aborted = False
        loop = asyncio.get_running_loop()
        # The handshake: the device sends after a round trip, the target once the device's answer has reached it.
        now_ms = loop.time() * 1000
        up_ms, down_ms = wire.up.way.delay_ms(now_ms), wire.down.way.delay_ms(now_ms)
        device_sends_ms = now_ms + up_ms + down_ms
        target_sends_ms = device_sends_ms + up_ms
        self._up = _Lane(self, wire, wire.up, Stream(wire.up.way, number, opens_ms=device_sends_ms))
        self._down = _Lane(self, wire, wire.down, Stream(wire.down.way, number, opens_ms=target_sends_ms))
        self.device_end = End(self, sends=self._up, receives=self._down)
        self._target_end = End(self, sends=self._down, receives=self._up)

    @property
    def held_bytes(self) -> int:
        """Bytes on the way, both ways."""
        return self._up.held_bytes + self._down.held_bytes

    def deliver(self) -> None:
        """Deliver what is due, both ways."""
        self._up.deliver()
        self._down.deliver()

    def mute(self, *, up: bool) -> None:
        """Deliver nothing more in one direction, for good."""
        (self._up if up else self._down).muted = True

    def abort(self) -> None:
        """Reset both ends at once; what is on the way is lost."""
        self._aborted = True
        if self._connecting is not None:
            self._connecting.cancel()
        self._up.clear()
        self._down.clear()
        self.device_end.reset()
        self._target_end.reset()
        self._wire.connections.discard(self)

    def opened(self, end: End) -> None:
        """An end is connected. The device's is the first; the target's is opened for it."""
        if self._aborted or self._wire.closed:
            self.abort()
        elif end is self.device_end:
            self._wire.connections.add(self)
            self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self._target_end, *self._target)
        except OSError:
            self._connecting = None
            self.abort()  # all that a program behind a proxy can see of a target that is not there

    def lost(self) -> None:
        """An end is gone. With both gone there is nobody left to tell."""
        if not (self.device_end.connected or self._target_end.connected):
            self.abort()

    def ended(self) -> None:
        """A lane has delivered its end. After both have, nothing more can come."""
        if self._up.ended and self._down.ended:
            self._wire.connections.discard(self)
            self.device_end.close()
            self._target_end.close()


class _Lane:
    """One way through a connection."""

    def __init__(self, connection: Connection, wire: Wire, direction: Direction, stream: Stream) -> None:
        self.source: asyncio.Transport | None = None
        self.sink: asyncio.Transport | None = None
        self.blocked = False  # the sink's reader is slow
        self.muted = False
        self.held_bytes = 0
        self.ended = False
        self._connection = connection
        self._wire = wire
        self._direction = direction
        self._stream = stream
        self._outside: deque[bytes | None] = deque()  # read, but not admitted to the link yet
        self._queue: deque[tuple[float, bytes | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def put(self, data: bytes) -> None:
        """Data has entered."""
        now = self._loop.time()
        self._direction.bytes += len(data)
        self.held_bytes += len(data)
        self._stream.begin_burst()
        begin = 0
        for size in self._direction.way.pieces(now * 1000, len(data)):
            self._outside.append(data[begin : begin + size])
            begin += size
        self._direction.enter(self, now)
        if self.source is not None and (self._outside or self.held_bytes >= self._wire.settings.buffer_bytes):
            self.source.pause_reading()

    def put_mark(self, mark: bytes | None) -> None:
        """The sender has closed its side (END) or its connection broke (RESET)."""
        self._outside.append(mark)
        self._direction.enter(self, self._loop.time())

    def enter_one(self, now: float) -> bool:
        """Send the next piece on its way. Returns whether there is another."""
        if self._outside:
            item = self._outside.popleft()
            due = self._stream.arrival_ms(now * 1000, len(item or END)) / 1000
            self._queue.append((due, item))
            if self._timer is None:
                self.deliver()
            else:
                self._read_on()
        return bool(self._outside)

    def clear(self) -> None:
        """Drop what is on the way."""
        self._outside.clear()
        self._queue.clear()
        self.held_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def deliver(self) -> None:
        """Pass on what is due, in order, and set the timer for what is not."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._queue and self.sink is not None and not (self.blocked or self.muted or self.sink.is_closing()):
            due = max(self._queue[0][0], self._wire.stalled_until)
            if due > self._loop.time():
                if due < math.inf:
                    self._timer = self._loop.call_at(due, self.deliver)
                break
            self._pass_on(self.sink, self._queue.popleft()[1])
        self._read_on()

    def _read_on(self) -> None:
        """Take more from the sender, if there is room for it."""
        room = self.held_bytes < self._wire.settings.buffer_bytes // 2 and not self._outside
        if room and self.source is not None:
            self.source.resume_reading()

    def _pass_on(self, sink: asyncio.Transport, item: bytes | None) -> None:
        if item is RESET:
            self._connection.abort()
        elif item == END:
            with contextlib.suppress(OSError):  # the other end may have gone in the meantime
                sink.write_eof()
            self.ended = True
            self._connection.ended()
        else:
            self.held_bytes -= len(item)
            sink.write(item)


class End(asyncio.Protocol):
    """One end of a connection: a socket to the device or to the target."""

    def __init__(self, connection: Connection, *, sends: _Lane, receives: _Lane) -> None:
        self._connection = connection
        self._sends = sends
        self._receives = receives
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected: let the lanes use it."""
        self._transport = self._sends.source = self._receives.sink = cast(asyncio.Transport, transport)
        self._transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._connection.opened(self)
        self._receives.deliver()

    def data_received(self, data: bytes) -> None:
        """Data goes into the lane away from this end."""
        self._sends.put(data)

    def eof_received(self) -> bool:
        """The end of the data too; True keeps the other direction open."""
        self._sends.put_mark(END)
        return True

    def pause_writing(self) -> None:
        """The program at this end reads slowly: hold back."""
        self._receives.blocked = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self._receives.blocked = False
        self._receives.deliver()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone. If it broke, the other end learns of it a delay later."""
        self._transport = self._sends.source = self._receives.sink = None
        self._receives.clear()
        if exc is not None:
            self._sends.put_mark(RESET)
        self._connection.lost()

    @property
    def connected(self) -> bool:
        """Whether there is a socket."""
        return self._transport is not None

    def close(self) -> None:
        """Close the socket when everything is written."""
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """Close the socket at once, with RST."""
        if self._transport is not None:
            reset(self._transport)


class Refusal(asyncio.Protocol):
    """A connection that is not wanted."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Reset it."""
        reset(cast(asyncio.Transport, transport))


def reset(transport: asyncio.Transport) -> None:
    """Close a transport's socket at once, with RST; what it had yet to write is lost."""
    if not transport.is_closing():
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    transport.abort()
