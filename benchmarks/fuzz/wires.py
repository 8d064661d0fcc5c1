"""Streams to a service: one that skips gRPC, for speed, and one over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import grpc
from outrider.v1 import verifier_pb2 as pb

from benchmarks.fuzz.device import Device

METHOD = "/outrider.v1.VerifierService/Generate"
WINDOW_MESSAGES = 16  # that a verifier can send to a device that does not read


Handler = Callable[[Any, Any], Coroutine[Any, Any, None]]


class Wire(Protocol):
    """A stream, as the device uses it."""

    device: Device

    @property
    def over(self) -> bool:
        """Whether the stream has ended."""

    def send(self, message: bytes | None) -> None:
        """Send a message; None closes this side."""

    def listen(self, listens: bool) -> None:
        """Read what comes, or leave it where it is."""

    def cut(self) -> None:
        """Break the stream."""


class _Aborted(grpc.aio.BaseError):
    """As gRPC's own, which cannot be made in Python."""


class DirectWire:
    """Calls the service itself; messages are serialised and parsed as on a socket."""

    def __init__(self, generate: Handler, device: Device, complain: Callable[[str], None]) -> None:
        """generate: the service's own, perhaps behind authentication."""
        self.device, self._complain = device, complain
        self._inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._unread: list[bytes] = []
        self._listening = asyncio.Event()
        self._listening.set()
        self._closed = False
        context: Any = self
        self._task = asyncio.create_task(generate(None, context))
        self._task.add_done_callback(self._ended)

    @property
    def over(self) -> bool:
        return self._task.done()

    def send(self, message: bytes | None) -> None:
        if message is not None:
            self.device.sent(message)
        self._inbox.put_nowait(message)

    def listen(self, listens: bool) -> None:
        if listens:
            self._listening.set()
            unread, self._unread = self._unread, []
            for data in unread:
                self.device.heard(pb.GenerateResponse.FromString(data))
        else:
            self._listening.clear()

    def cut(self) -> None:
        self._task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._inbox.put_nowait(None)  # as gRPC does to who still reads
        if task.cancelled():
            return
        self.listen(True)
        error = task.exception()
        if error is None and not self.device.finished:
            self._complain("the stream ended well in mid-answer")
        elif error is not None and not isinstance(error, _Aborted):
            self._complain(f"the stream's handler raised {error!r}")

    # -- what a handler sees of gRPC ----------------------------------------------------------------------------------

    async def read(self) -> Any:
        """The next message. Raises DecodeError, as gRPC's own."""
        if self._closed or (message := await self._inbox.get()) is None:
            self._closed = True
            return grpc.aio.EOF
        return pb.GenerateRequest.FromString(message)

    async def write(self, response: pb.GenerateResponse) -> None:
        """Send; waits for a device that does not read."""
        data = response.SerializeToString()
        if len(self._unread) >= WINDOW_MESSAGES:
            await self._listening.wait()
        if self._listening.is_set():
            self.device.heard(pb.GenerateResponse.FromString(data))
        else:
            self._unread.append(data)

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """What the device's call shows."""
        return self.device.caller.metadata

    def auth_context(self) -> dict[str, Any]:
        """Of a connection without certificates."""
        return {}

    def time_remaining(self) -> float | None:
        """Until the device's own deadline: it has none."""
        return None

    async def send_initial_metadata(self, metadata: Any) -> None:
        """Say that the session has to wait for its place."""

    async def abort(self, code: grpc.StatusCode, details: str, metadata: Any) -> None:
        """End with a status."""
        self.listen(True)
        self.device.refused(code.name, details, metadata)
        raise _Aborted


class SocketWire:
    """A gRPC call on a channel, with the bytes as they are."""

    def __init__(self, channel: grpc.aio.Channel, device: Device, complain: Callable[[str], None]) -> None:
        self.device, self._complain = device, complain
        self._outbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._listening = asyncio.Event()
        self._listening.set()
        method: Any = channel.stream_stream(METHOD)
        self._call = method(wait_for_ready=True, metadata=device.caller.metadata)
        self._task = asyncio.create_task(self._hear())
        self._sender = asyncio.create_task(self._send())

    @property
    def over(self) -> bool:
        return self._task.done() and self._sender.done()

    def send(self, message: bytes | None) -> None:
        if message is not None:
            self.device.sent(message)
        self._outbox.put_nowait(message)

    def listen(self, listens: bool) -> None:
        if listens:
            self._listening.set()
        else:
            self._listening.clear()

    def cut(self) -> None:
        self._call.cancel()
        self._task.cancel()
        self._sender.cancel()

    async def _send(self) -> None:
        """As `edge_client.link.session_link` does, for its reason: a write that comes too late is no error."""
        with contextlib.suppress(grpc.aio.BaseError):
            await self._call.wait_for_connection()
            while (message := await self._outbox.get()) is not None:
                await self._call._cython_call.send_serialized_message(message)
            await self._call.done_writing()

    async def _hear(self) -> None:
        try:
            while (data := await self._call.read()) is not grpc.aio.EOF:
                self.device.heard(pb.GenerateResponse.FromString(data))
                await self._listening.wait()
            if not self.device.finished:
                self._complain("the stream ended well in mid-answer")
        except grpc.aio.AioRpcError as error:
            with contextlib.suppress(asyncio.CancelledError):
                metadata = await self._call.trailing_metadata()
                self.device.refused(error.code().name, error.details() or "", tuple(metadata or ()))
        finally:
            self._sender.cancel()
