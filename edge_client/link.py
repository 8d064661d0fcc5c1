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
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

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
    ("grpc.min_reconnect_backoff_ms", 5_000),  # how long to try to connect: TLS takes four round trips
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
]
VOCABULARY_TIMEOUT_S = 120.0  # some megabytes, once
FAREWELL_S = 1.0  # how long to wait for a verifier to hear that it is no longer needed
RETIREMENT_S = 300.0  # how long streams that are well may stay on a connection that is no longer used for new ones

T = TypeVar("T")


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
class Heard:
    """A message of the verifier's. at_ms: the device's clock when it came in, which may be well before it is looked at,
    for a drafter cannot be interrupted within a token. rtt_ms: the latest round trip as then known."""

    response: pb.GenerateResponse
    at_ms: float
    rtt_ms: float | None


@dataclass(frozen=True)
class Reconnected:
    """The stream broke and stands again: what was sent may have been lost."""


@dataclass(frozen=True)
class Failed:
    """The session cannot go on."""

    error: SessionError


@dataclass(frozen=True)
class Errand:
    """Something that another thread wants done on the session's own."""

    run: Callable[[], None]


Message = Heard | Reconnected | Failed | Errand


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
        self._closed = False
        self._lock = threading.Lock()  # of `_closed`: `close` sees everything that was called before it
        self._links: dict[asyncio.Task[Any], SessionLink] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="outrider-link", daemon=True)
        self._thread.start()
        self._channel: grpc.aio.Channel
        self.stub: pb_grpc.VerifierServiceAsyncStub
        self.call(self._connect()).result()

    async def _connect(self) -> None:
        if self._secure:
            credentials = grpc.ssl_channel_credentials(self._root)
            self._channel = grpc.aio.secure_channel(self.verifier, credentials, CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(self.verifier, CHANNEL_OPTIONS)
        self.stub = pb_grpc.VerifierServiceStub(self._channel)

    def call(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run a coroutine on the link's loop. Raises SessionError when the channel is closed."""
        with self._lock:
            if not self._closed:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        raise closed()

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
        except CancelledError as error:
            raise closed() from error
        return answer

    def vocabulary(self, model: str, collect: Callable[[AsyncIterator[Any]], Coroutine[Any, Any, T]]) -> T:
        """Ask for the target's vocabulary; `collect` makes something of its pieces, on the link's loop.

        Raises SessionError, and what `collect` raises.
        """

        async def ask() -> T:
            call: Any = self.stub.GetVocabulary(pb.GetVocabularyRequest(model=model), timeout=VOCABULARY_TIMEOUT_S)
            try:
                return await collect(call)
            finally:
                call.cancel()

        try:
            answer: T = self.call(ask()).result()
        except grpc.aio.AioRpcError as error:
            raise self._explain(error) from error
        except CancelledError as error:
            raise closed() from error
        return answer

    def _explain(self, error: grpc.aio.AioRpcError) -> SessionError:
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return unreachable(self.verifier, error.details() or "no answer in time")
        return SessionError.from_rpc(error)

    def close(self) -> None:
        """Close the channel and end the loop. Running sessions fail. May be called more than once."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            closing = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        closing.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        for link in self._links.values():
            link.inbox.put(Failed(closed()))
            link.leave()
        if self._links:
            await asyncio.wait(self._links, timeout=FAREWELL_S)
        await self._channel.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:  # whoever waits for one of them, waits no longer
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    # -- for the sessions, on the link's loop --------------------------------------------------------------------------

    @contextlib.contextmanager
    def living(self, link: SessionLink) -> Iterator[None]:
        """Know a session for as long as it lives, so that `close` can end it."""
        task = asyncio.current_task()
        assert task is not None
        self._links[task] = link
        try:
            yield
        finally:
            del self._links[task]

    async def renew(self, stub: pb_grpc.VerifierServiceAsyncStub) -> None:
        """Connect anew, unless another session has done so: the connection of `stub` may be dead without a sign of it.

        gRPC would go on using it until its keepalive fails. Streams on it that are well may go on there.
        """
        if stub is self.stub:
            retiring = asyncio.create_task(self._channel.close(RETIREMENT_S))
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)
            await self._connect()


def closed() -> SessionError:
    """The client was closed."""
    return SessionError("CANCELLED", "CLOSED", "this client was closed; make another one")


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

    inbox: messages in order. Failed or a Finished comes whatever happens, and nothing that matters after it. Byte
    counts are of serialised messages.
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
        self._target = ""
        self._prompt_length = 0
        self._left = False
        self._finished = False
        self._trouble = ""
        self._answer: list[int] = list(self.open_request.continue_from)
        self._heard_s = 0.0
        self._task = self.channel.call(self._live())

    def send(self, request: pb.GenerateRequest) -> None:
        """Send if a stream stands; otherwise drop: after `Reconnected` the session says what still matters."""
        self.channel.soon(self._put, request)

    def cancel(self) -> None:
        """Ask the verifier to end the session; it answers with Finished. If the link is down, the session fails."""
        self.channel.soon(self.leave)

    def close(self) -> None:
        """Give up what is not finished: nobody reads the inbox any more."""
        self.channel.soon(self.leave)

    def leave(self) -> None:
        """`cancel`, on the link's loop."""
        self._left = True
        if self._finished:
            return
        if self._outbox is not None:
            self._put(pb.GenerateRequest(cancel=pb.Cancel()))
        elif self._session_id:  # between two streams: the verifier forgets the session after its lease
            self._task.cancel()

    def _put(self, request: pb.GenerateRequest) -> None:
        if self._outbox is not None:
            self._outbox.put_nowait(request)

    async def _live(self) -> None:
        try:
            with self.channel.living(self):
                await self._streams()
        except SessionError as error:
            self.inbox.put(Failed(error))
        except asyncio.CancelledError:
            self.inbox.put(Failed(left() if self._left else closed()))
            raise
        except Exception as error:  # a session must never wait for ever because of a fault of ours
            self.inbox.put(Failed(SessionError("INTERNAL", "CLIENT_FAULT", f"{type(error).__name__}: {error}")))

    async def _streams(self) -> None:
        """One stream after the other until the session is finished. Raises SessionError."""
        fruitless, trouble_began_s = 0, 0.0
        while True:
            known = len(self._answer)
            broken = await self._stream()
            if self._finished:
                return
            if self._left:
                raise left()
            if len(self._answer) > known:
                fruitless = 0
            else:  # it was opened and broke without news: that may be so for ever
                trouble_began_s = trouble_began_s if fruitless else time.monotonic()
                if time.monotonic() - trouble_began_s > self.channel.settings.reconnect_timeout_s:
                    raise broken
                fruitless += 1
                await asyncio.sleep(min(1.0, 0.025 * 2**fruitless))
            self.reconnects += 1

    async def _stream(self) -> SessionError:
        """One stream from opening to its end; returns why it broke, if it did. Raises SessionError if all is over."""
        again = bool(self._session_id)
        call, response = await self._open_patiently(again)
        outbox: asyncio.Queue[pb.GenerateRequest] = asyncio.Queue()
        self._outbox = outbox  # before the session hears of the stream, or else its first words could be dropped
        self._take(response)
        if again:
            self.inbox.put(Reconnected())
        if self._left:
            self.leave()
        helpers = [asyncio.create_task(self._sender(call, outbox)), asyncio.create_task(self._watch(call))]
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                self._take(response)
            return SessionError("UNAVAILABLE", "NO_FINISHED", "the verifier ended the stream in mid-answer")
        except grpc.aio.AioRpcError as error:
            broken = SessionError.from_rpc(error)
            if self._finished or _transient(error) or error.code() is grpc.StatusCode.ABORTED:
                return broken
            raise broken from error
        except asyncio.CancelledError:
            if _meant_for_this_task():
                raise
            return unreachable(self.channel.verifier, "the stream fell silent")
        finally:
            self._outbox = None
            for helper in helpers:
                helper.cancel()
            call.cancel()

    async def _open_patiently(self, again: bool) -> tuple[Any, Any]:
        """Open or resume, for as long as trying makes sense. Raises SessionError."""
        settings = self.channel.settings
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(_transient_again if again else _transient),
            wait=tenacity.wait_random_exponential(multiplier=0.05, max=1.0),
            reraise=True,
        )
        self._trouble = "no answer in time"
        try:
            async with asyncio.timeout(settings.reconnect_timeout_s if again else settings.connect_timeout_s):
                return await retrying(self._open_stream)
        except TimeoutError as error:
            raise unreachable(self.channel.verifier, self._trouble) from error
        except grpc.aio.AioRpcError as error:
            raise SessionError.from_rpc(error) from error

    async def _open_stream(self) -> tuple[Any, Any]:
        """Open or resume; returns the call and its Opened, once that has come."""
        stub = self.channel.stub
        call: Any = stub.Generate()
        try:
            await call.wait_for_connection()
            await self._write(call, self._opening())
            response = await asyncio.wait_for(call.read(), self.channel.settings.stalled_s)
            if not isinstance(response, pb.GenerateResponse) or response.WhichOneof("message") != "opened":
                raise SessionError("INTERNAL", "NO_OPENED", "the verifier did not begin by opening a session")
            self._check_target(response.opened.model_info.target_fingerprint)
        except BaseException as error:
            call.cancel()
            if isinstance(error, TimeoutError):
                self._trouble = "it took the stream but did not open a session in time"
                await self.channel.renew(stub)
            elif isinstance(error, grpc.aio.AioRpcError):
                self._trouble = error.details() or error.code().name
                if self._session_id and error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.OUT_OF_RANGE):
                    self._session_id = ""  # another life: the verifier was restarted or the lease has ended
                    return await self._open_stream()
            elif isinstance(error, asyncio.CancelledError) and not _meant_for_this_task():
                raise TimeoutError from error  # the connection was retired
            raise
        self._session_id, self._prompt_length = response.opened.session_id, response.opened.prompt_length
        return call, response

    def _check_target(self, target: str) -> None:
        """A verifier with other weights would go on with other words. Raises SessionError."""
        if self._target and target != self._target:
            raise SessionError(
                "FAILED_PRECONDITION",
                "TARGET_CHANGED",
                f"the verifier at {self.channel.verifier} came back with another target ({target} instead of "
                f"{self._target}), which would go on with other words; ask again from the beginning",
            )
        self._target = target

    def _opening(self) -> pb.GenerateRequest:
        request = pb.GenerateRequest(open=self._resuming() if self._session_id else self._anew())
        if (size := request.ByteSize()) > MAX_MESSAGE_BYTES:  # gRPC would only call it an internal error
            raise SessionError(
                "RESOURCE_EXHAUSTED",
                "TOO_LARGE",
                f"the request has {size} bytes, and at most {MAX_MESSAGE_BYTES} are sent; shorten the prompt",
            )
        return request

    def _resuming(self) -> pb.Open:
        return pb.Open(
            protocol_version=self.open_request.protocol_version,
            resume=pb.Resume(session_id=self._session_id, known_length=self._prompt_length + len(self._answer)),
            drafter_vocabulary_fingerprint=self.open_request.drafter_vocabulary_fingerprint,
        )

    def _anew(self) -> pb.Open:
        request = pb.Open()
        request.CopyFrom(self.open_request)
        del request.continue_from[:]
        request.continue_from.extend(self._answer)
        return request

    def _take(self, response: pb.GenerateResponse) -> None:
        self._heard_s = time.monotonic()
        self.downlink_bytes += response.ByteSize()
        kind = response.WhichOneof("message")
        if kind == "commit":
            commit = response.commit
            known = self._prompt_length + len(self._answer)
            self._answer.extend(commit.tokens[max(0, known - commit.start) :])
            self.rtt.observe(now_us(), commit.echo_sent_at_us, commit.hold_us)
        elif kind == "finished":
            self._finished = True
        elif kind == "pong":
            self.rtt.observe(now_us(), response.pong.echo_sent_at_us, 0)
            return
        self.inbox.put(Heard(response, time.perf_counter() * 1e3, self.rtt.latest_ms))

    async def _sender(self, call: Any, outbox: asyncio.Queue[pb.GenerateRequest]) -> None:
        while True:
            await self._write(call, await outbox.get())

    async def _write(self, call: Any, request: pb.GenerateRequest) -> None:
        """Write; if the stream ends in the meantime, reading tells how.

        Not by `call.write`: a write that fails, as the last draft of an answer often does, makes that call it an
        internal error, drop what is still to be read, and keep the call's memory for ever (grpcio 1.85).
        """
        with contextlib.suppress(grpc.aio.BaseError):
            await call._cython_call.send_serialized_message(self._count_up(request).SerializeToString())

    def _count_up(self, request: pb.GenerateRequest) -> pb.GenerateRequest:
        self.uplink_bytes += request.ByteSize()
        return request

    async def _watch(self, call: Any) -> None:
        """Ping a quiet stream; give up one that stays silent, so that it is resumed on a fresh connection."""
        settings, stub = self.channel.settings, self.channel.stub
        while True:
            await asyncio.sleep(settings.quiet_s / 2)
            silence_s = time.monotonic() - self._heard_s
            if silence_s > settings.stalled_s:
                await self.channel.renew(stub)
                call.cancel()
                return
            if silence_s > settings.quiet_s:
                self._put(pb.GenerateRequest(ping=pb.Ping(sent_at_us=now_us())))


def left() -> SessionError:
    """The device cancelled the answer, and the verifier could not be asked how far it was."""
    return SessionError("CANCELLED", "LEFT", "the answer was cancelled while the link to the verifier was down")


def _meant_for_this_task() -> bool:
    """Whether a CancelledError is for the present task; gRPC also raises it when only the call was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _transient_again(error: BaseException) -> bool:
    """As `_transient`, and a verifier without a free place: after its restart all its devices come back at once."""
    full = isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    return full or _transient(error)


def _transient(error: BaseException) -> bool:
    """Whether the way to the verifier is at fault. A verifier that fails by itself gives a reason; a torn connection
    can look like an internal error of gRPC's, but has none."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return isinstance(error, TimeoutError)
    if error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
        return not SessionError.from_rpc(error).reason
    return error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
