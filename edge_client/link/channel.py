"""A channel to one verifier, and the event loop on a thread of its own on which all network work happens."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.message import Message
from outrider.v1 import verifier_pb2 as pb
from outrider.v1 import verifier_pb2_grpc as pb_grpc

from edge_client.errors import SessionError, closed, unreachable
from edge_client.link.security import Security, host_and_port, is_loopback, refused_handshake

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


@dataclass(frozen=True)
class LinkSettings:
    """How long things may take, in seconds.

    connect_timeout_s: to reach the verifier at first. place_timeout_s: until the session is open, from when the
    verifier has received the request (or the latest piece of a long one): it may have to wait for a place, in the
    verifier's queue or for as long as that says. reconnect_timeout_s: both after a break. quiet_s: silence after which
    the link is pinged. waiting_s: silence after which people are told that the answer waits for the network; longer on
    links whose round trip is long. stalled_s: silence after which the stream is given up and resumed. offline_after_s:
    silence after which the device may answer alone, if it may.
    """

    connect_timeout_s: float = 10.0
    place_timeout_s: float = 30.0
    reconnect_timeout_s: float = 60.0
    quiet_s: float = 0.4
    waiting_s: float = 0.8
    stalled_s: float = 6.0
    offline_after_s: float = 3.0


class Live(Protocol):
    """A session on the channel, as far as the channel knows it. Called on the channel's loop."""

    def fail(self, error: SessionError) -> None:
        """Tell the session that it cannot go on."""

    def leave(self) -> None:
        """End the session: nobody waits for it any more."""


class Channel:
    """A channel to one verifier and the event loop it lives on."""

    def __init__(
        self,
        verifier: str,
        *,
        security: Security | None = None,
        settings: LinkSettings | None = None,
    ) -> None:
        """verifier: HOST:PORT, or several with commas between: another is tried when one is away or about to leave.

        Raises ValueError if it is not, if files are none, or as `Security.check`.
        """
        security = security or Security()
        self._addresses = [address.strip() for address in verifier.split(",")]
        for address in self._addresses:
            security.check(host_and_port(address)[0])
        self._credentials = security.credentials()
        self.metadata = security.metadata
        self.verifier = verifier
        self.settings = settings or LinkSettings()
        self.takes_open_pieces = True  # until a verifier refuses them
        self._closed = False
        self._lock = threading.Lock()  # of `_closed`: `close` sees everything that was called before it
        self._links: dict[asyncio.Task[Any], Live] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="outrider-link", daemon=True)
        self._thread.start()
        self._channel: grpc.aio.Channel
        self.stub: pb_grpc.VerifierServiceAsyncStub
        self.call(self._connect()).result()

    async def _connect(self) -> None:
        address, options = self._addresses[0], list(CHANNEL_OPTIONS)
        if is_loopback(host_and_port(address)[0]):  # whatever http_proxy says: a proxy has another loopback
            options.append(("grpc.enable_http_proxy", 0))
        if self._credentials is not None:
            self._channel = grpc.aio.secure_channel(address, self._credentials, options)
        else:
            self._channel = grpc.aio.insecure_channel(address, options)
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
        """Ask the verifier about one model; an empty name means its default. Raises SessionError."""
        request = pb.GetModelInfoRequest(model=model)
        answer: pb.GetModelInfoResponse = self._ask(lambda stub: stub.GetModelInfo, request, timeout_s)
        return answer

    def models(self, timeout_s: float = 10.0) -> Sequence[pb.GetModelInfoResponse]:
        """Ask the verifier about all its models; its default comes first. Raises SessionError."""
        try:
            answer: pb.ListModelsResponse = self._ask(lambda stub: stub.ListModels, pb.ListModelsRequest(), timeout_s)
        except SessionError as error:
            if error.code != "UNIMPLEMENTED":
                raise
            return [self.model_info("", timeout_s)]  # an older verifier, which cannot list them
        if not answer.models:
            raise SessionError(
                "DATA_LOSS", "NO_MODELS", f"the verifier at {self.verifier} says that it serves no model"
            )
        return answer.models

    def _ask(
        self, method: Callable[[pb_grpc.VerifierServiceAsyncStub], Any], request: Message, timeout_s: float
    ) -> Any:
        """A unary call; another address is asked if one is away. Raises SessionError."""

        async def ask(*, patiently: bool) -> Any:
            return await method(self.stub)(request, metadata=self.metadata, timeout=timeout_s, wait_for_ready=patiently)

        async def ask_and_say_why_not() -> Any:
            for _ in self._addresses[1:]:
                stub = self.stub
                try:
                    return await ask(patiently=False)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                await self.move_on(stub)
            try:
                return await ask(patiently=True)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise
            return await ask(patiently=False)  # which does not wait for a connection but says what it lacks

        try:
            return self.call(ask_and_say_why_not()).result()
        except grpc.aio.AioRpcError as error:
            raise self._explain(error) from error
        except CancelledError as error:
            raise closed() from error

    def vocabulary(self, model: str, collect: Callable[[AsyncIterator[Any]], Coroutine[Any, Any, T]]) -> T:
        """Ask for the target's vocabulary; `collect` makes something of its pieces, on the link's loop.

        Raises SessionError, and what `collect` raises.
        """

        async def ask() -> T:
            call: Any = self.stub.GetVocabulary(
                pb.GetVocabularyRequest(model=model), metadata=self.metadata, timeout=VOCABULARY_TIMEOUT_S
            )
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
            details = error.details() or "no answer in time"
            return refused_handshake(self.verifier, details) or unreachable(self.verifier, details)
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
            link.fail(closed())
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
    def living(self, link: Live) -> Iterator[None]:
        """Know a session for as long as it lives, so that `close` can end it."""
        task = asyncio.current_task()
        assert task is not None
        self._links[task] = link
        try:
            yield
        finally:
            del self._links[task]

    async def move_on(self, stub: pb_grpc.VerifierServiceAsyncStub, *, leaving: bool = False) -> None:
        """To the next address, unless another session has done so, for the present one does not serve. leaving: it said
        itself that another process should be asked, which may have the same address."""
        if stub is self.stub and (leaving or len(self._addresses) > 1):
            self._addresses.append(self._addresses.pop(0))
            await self.renew(stub)

    async def renew(self, stub: pb_grpc.VerifierServiceAsyncStub) -> None:
        """Connect anew, unless another session has done so: the connection of `stub` may be dead without a sign of it.

        gRPC would go on using it until its keepalive fails. Streams on it that are well may go on there.
        """
        if stub is self.stub:
            retiring = asyncio.create_task(self._channel.close(RETIREMENT_S))
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)
            await self._connect()
