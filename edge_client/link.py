"""The link: one channel to a verifier, and per session a stream that survives cuts.

All network work happens on one background event loop. A session's thread sees an inbox of messages and a `send`; when a
stream breaks, the link resumes the session (or opens it again from the tokens it has seen, on whatever replica answers)
and tells the session with a `Reconnected`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import queue
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import tenacity
from outrider.v1 import verifier_pb2 as pb
from outrider.v1 import verifier_pb2_grpc as pb_grpc

from edge_client.errors import SessionError
from edge_client.rtt import RttEstimator

MAX_MESSAGE_BYTES = 1 << 20
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 25_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
]


def now_us() -> int:
    """The device's clock in microseconds, as it goes into `sent_at_us`."""
    return time.monotonic_ns() // 1000


@dataclass(frozen=True)
class LinkSettings:
    """How long things may take, in seconds.

    connect_timeout_s: to reach the verifier at first. reconnect_timeout_s: after a break. quiet_s: silence after which
    the link is pinged. stalled_s: silence after which the stream is given up and resumed.
    """

    connect_timeout_s: float = 10.0
    reconnect_timeout_s: float = 60.0
    quiet_s: float = 1.0
    stalled_s: float = 6.0


@dataclass(frozen=True)
class Reconnected:
    """The stream broke and stands again: what was sent may have been lost."""


@dataclass(frozen=True)
class Failed:
    """The session cannot go on."""

    error: SessionError


Message = pb.GenerateResponse | Reconnected | Failed


class Channel:
    """A channel to one verifier and the event loop it lives on."""

    def __init__(
        self,
        verifier: str,
        *,
        ca_certificate: Path | None = None,
        tls: bool = False,
        insecure: bool = False,
        settings: LinkSettings | None = None,
    ) -> None:
        """verifier: HOST:PORT. Raises ValueError if it is not, or if plaintext would leave the machine unasked."""
        host, _, port = verifier.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"the verifier's address is {verifier!r}; it must look like HOST:PORT")
        secure = tls or ca_certificate is not None
        if not secure and not insecure and not _loopback(host.strip("[]")):
            raise ValueError(
                f"{host} is not this machine, and without TLS prompts and answers would travel in the clear; use TLS, "
                "or allow plaintext (insecure) if the network is yours alone"
            )
        self.verifier = verifier
        self.settings = settings or LinkSettings()
        self._root = ca_certificate.read_bytes() if ca_certificate else None
        self._secure = secure
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="outrider-link", daemon=True)
        self._thread.start()
        self._channel = self.call(self._connect()).result()
        self.stub = pb_grpc.VerifierServiceStub(self._channel)

    async def _connect(self) -> grpc.aio.Channel:
        if self._secure:
            return grpc.aio.secure_channel(self.verifier, grpc.ssl_channel_credentials(self._root), CHANNEL_OPTIONS)
        return grpc.aio.insecure_channel(self.verifier, CHANNEL_OPTIONS)

    def call(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run a coroutine on the link's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def soon(self, callback: Any, *arguments: Any) -> None:
        """Run a function on the link's loop, without waiting."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing is left to be told
            self._loop.call_soon_threadsafe(callback, *arguments)

    def model_info(self, model: str = "", timeout_s: float = 10.0) -> pb.GetModelInfoResponse:
        """Ask the verifier what it serves. Raises SessionError."""

        async def ask() -> pb.GetModelInfoResponse:
            reply: pb.GetModelInfoResponse = await self.stub.GetModelInfo(
                pb.GetModelInfoRequest(model=model), timeout=timeout_s, wait_for_ready=True
            )
            return reply

        try:
            answer: pb.GetModelInfoResponse = self.call(ask()).result()
        except grpc.aio.AioRpcError as error:
            raise self._explain(error) from error
        return answer

    def _explain(self, error: grpc.aio.AioRpcError) -> SessionError:
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return unreachable(self.verifier, error.details() or "no answer in time")
        return SessionError.from_rpc(error)

    def close(self) -> None:
        """Close the channel and end the loop. May be called more than once."""
        if self._loop.is_closed():
            return
        self.call(self._channel.close()).result(timeout=5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        self._loop.close()


def unreachable(verifier: str, detail: str) -> SessionError:
    """The verifier does not answer."""
    return SessionError(
        "UNAVAILABLE",
        "UNREACHABLE",
        f"the verifier at {verifier} cannot be reached ({detail}); check that it runs and that the address is right",
    )


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass
class SessionLink:
    """One session's stream, for as long as the session lives. Made and used by one thread; `close` when done.

    inbox: messages in order; after Failed or a Finished nothing more comes. Byte counts are of serialised messages.
    """

    channel: Channel
    open_request: pb.Open
    inbox: queue.SimpleQueue[Message] = field(default_factory=queue.SimpleQueue)
    rtt: RttEstimator = field(default_factory=RttEstimator)
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    reconnects: int = 0

    def __post_init__(self) -> None:
        self._outbox: asyncio.Queue[pb.GenerateRequest] | None = None
        self._session_id = ""
        self._prompt_length = 0
        self._given_up = False
        self._answer: list[int] = list(self.open_request.continue_from)
        self._heard_s = 0.0
        self._task = self.channel.call(self._live())

    def send(self, request: pb.GenerateRequest) -> None:
        """Send if a stream stands; otherwise drop: after `Reconnected` the session says what still matters."""
        self.channel.soon(self._put, request)

    def close(self) -> None:
        """Give the stream up. The verifier keeps the session for its lease."""
        self._task.cancel()

    def _put(self, request: pb.GenerateRequest) -> None:
        if self._outbox is not None:
            self._outbox.put_nowait(request)

    async def _live(self) -> None:
        try:
            while not await self._stream():
                self.reconnects += 1
        except SessionError as error:
            self.inbox.put(Failed(error))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # a session must never wait for ever because of a fault of ours
            self.inbox.put(Failed(SessionError("INTERNAL", "CLIENT_FAULT", f"{type(error).__name__}: {error}")))

    async def _stream(self) -> bool:
        """One stream from opening to its end; returns whether the session is finished. Raises SessionError."""
        settings = self.channel.settings
        again = bool(self._session_id)
        patience_s = settings.reconnect_timeout_s if again else settings.connect_timeout_s
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(_transient),
            wait=tenacity.wait_random_exponential(multiplier=0.05, max=1.0),
            stop=tenacity.stop_after_delay(patience_s),
            reraise=True,
        )
        try:
            call: Any = await retrying(self._open_stream)
        except TimeoutError as error:
            raise unreachable(self.channel.verifier, "it took the stream but did not open a session in time") from error
        except grpc.aio.AioRpcError as error:
            if _transient(error):
                raise unreachable(self.channel.verifier, error.details() or "") from error
            raise SessionError.from_rpc(error) from error
        if again:
            self.inbox.put(Reconnected())
        outbox: asyncio.Queue[pb.GenerateRequest] = asyncio.Queue()
        self._outbox, self._given_up = outbox, False
        helpers = [asyncio.create_task(self._sender(call, outbox)), asyncio.create_task(self._watch(call))]
        try:
            return await self._receive(call)
        except grpc.aio.AioRpcError as error:
            if _transient(error) or error.code() is grpc.StatusCode.ABORTED:
                return False
            raise SessionError.from_rpc(error) from error
        except asyncio.CancelledError:
            if self._given_up:  # by the watch, not by whoever closed this session
                return False
            raise
        finally:
            self._outbox = None
            for helper in helpers:
                helper.cancel()
            call.cancel()

    async def _open_stream(self) -> Any:
        """Open or resume; returns the call once Opened has come."""
        call = self.channel.stub.Generate()
        try:
            await call.write(self._count_up(pb.GenerateRequest(open=self._opening())))
            response = await asyncio.wait_for(call.read(), self.channel.settings.stalled_s)
            if response is grpc.aio.EOF:
                await call.code()  # the status tells why; a stream that ends well without Opened is a broken verifier
                raise SessionError("INTERNAL", "NO_OPENED", "the verifier ended the stream without opening a session")
        except grpc.aio.AioRpcError as error:
            call.cancel()
            if self._session_id and error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.OUT_OF_RANGE):
                self._session_id = ""  # another life: the verifier was restarted or the lease has ended
                return await self._open_stream()
            raise
        except TimeoutError:
            call.cancel()
            raise
        opened = response.opened
        self._session_id, self._prompt_length = opened.session_id, opened.prompt_length
        self._take(response)
        return call

    def _opening(self) -> pb.Open:
        request = pb.Open()
        request.CopyFrom(self.open_request)
        if self._session_id:
            known = self._prompt_length + len(self._answer)
            return pb.Open(
                protocol_version=request.protocol_version,
                resume=pb.Resume(session_id=self._session_id, known_length=known),
                drafter_vocabulary_fingerprint=request.drafter_vocabulary_fingerprint,
            )
        del request.continue_from[:]
        request.continue_from.extend(self._answer)
        return request

    async def _receive(self, call: Any) -> bool:
        while True:
            response = await call.read()
            if response is grpc.aio.EOF:
                code = await call.code()
                if code is grpc.StatusCode.OK:
                    return False
                raise grpc.aio.AioRpcError(
                    code, await call.initial_metadata(), await call.trailing_metadata(), await call.details()
                )
            self._take(response)
            if response.WhichOneof("message") == "finished":
                return True

    def _take(self, response: pb.GenerateResponse) -> None:
        self._heard_s = time.monotonic()
        self.downlink_bytes += response.ByteSize()
        kind = response.WhichOneof("message")
        if kind == "commit":
            commit = response.commit
            known = self._prompt_length + len(self._answer)
            self._answer.extend(commit.tokens[max(0, known - commit.start) :])
            self.rtt.observe(now_us(), commit.echo_sent_at_us, commit.hold_us)
        elif kind == "pong":
            self.rtt.observe(now_us(), response.pong.echo_sent_at_us, 0)
            return
        self.inbox.put(response)

    async def _sender(self, call: Any, outbox: asyncio.Queue[pb.GenerateRequest]) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the receiver reports what happened
            while True:
                await call.write(self._count_up(await outbox.get()))

    def _count_up(self, request: pb.GenerateRequest) -> pb.GenerateRequest:
        self.uplink_bytes += request.ByteSize()
        return request

    async def _watch(self, call: Any) -> None:
        """Ping a quiet stream; give up one that stays silent, so that it is resumed on a fresh connection."""
        settings = self.channel.settings
        while True:
            await asyncio.sleep(settings.quiet_s / 2)
            silence_s = time.monotonic() - self._heard_s
            if silence_s > settings.stalled_s:
                self._given_up = True
                call.cancel()
                return
            if silence_s > settings.quiet_s:
                self._put(pb.GenerateRequest(ping=pb.Ping(sent_at_us=now_us())))


def _transient(error: BaseException) -> bool:
    """Whether the way to the verifier is at fault. A verifier that fails by itself gives a reason; a torn connection
    can look like an internal error of gRPC's, but has none."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return isinstance(error, TimeoutError)
    if error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
        return not SessionError.from_rpc(error).reason
    return error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
