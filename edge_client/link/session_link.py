"""The link: per session a stream that survives cuts, on a channel to the verifier.

A session's thread sees an inbox of messages and a `send`; when a stream breaks, the link resumes the session (or opens
it again from the tokens it has seen, on whatever replica answers) and tells the session with a `Reconnected`.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import time
from dataclasses import dataclass, field
from typing import Any

import grpc
import tenacity
from outrider.v1 import verifier_pb2 as pb

from edge_client.errors import FAILURES, SessionError, closed, gave_up, left, prompt_changed, unreachable
from edge_client.link.channel import MAX_MESSAGE_BYTES, Channel
from edge_client.link.inbox import Failed, Heard, LinkChanged, Message, PromptKnown, Reconnected
from edge_client.link.retry_policy import OpenRetryPolicy, transient
from edge_client.link.rtt import RttEstimator
from edge_client.link.security import refused_handshake

MOST_FAILURES = 3  # of the verifier on one answer: an engine that cannot take this input is not to be asked for ever
QUEUE_POSITION = "outrider-queue-position"  # of the metadata that a verifier sends while a session waits for a place
WHOLE_OPEN_BYTES = 1 << 14  # a longer Open goes in pieces, so that a slow link can be told from a dead one
PIECE_BYTES = 1 << 13
GRACE_S = 1.0  # for a place that was on its way when it was given up


def now_us() -> int:
    """The device's clock in microseconds, as it goes into `sent_at_us`."""
    return time.monotonic_ns() // 1000


@dataclass
class SessionLink:
    """One session's stream, for as long as the session lives. Made and used by one thread; `close` when done.

    target: fingerprint of the target that must answer; empty for any.
    inbox: messages in order. Failed or a Finished comes whatever happens, and nothing that matters after it. Byte
    counts are of serialised messages. failures: of the verifier on this session, after which another went on from its
    log.
    """

    channel: Channel
    open_request: pb.Open
    target: str = ""
    inbox: queue.SimpleQueue[Message] = field(default_factory=queue.SimpleQueue)
    rtt: RttEstimator = field(default_factory=RttEstimator)
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    reconnects: int = 0
    failures: int = 0

    def __post_init__(self) -> None:
        self._outbox: asyncio.Queue[pb.GenerateRequest] | None = None
        self._session_id = ""
        self._prompt_length = 0
        self._prompt: list[int] = []  # as far as it is known
        self._prompt_fingerprint = self.open_request.prompt_fingerprint
        self._opened = False
        self._left = False
        self._finished = False
        self._asked = False  # whether a verifier may be opening a session for this just now
        self._trouble = ""
        self._answer: list[int] = list(self.open_request.continue_from)
        self._heard_s = time.monotonic()
        self._queued = False  # by a verifier that says nothing more until there is a place
        self._waiting_call: Any = None  # in a queue of the verifier's
        self.waiting = False  # whether the session was told so
        self._task: asyncio.Task[Any] | None = None  # once it runs
        self._leaving: asyncio.Task[None] | None = None
        self.channel.call(self._live())

    def send(self, request: pb.GenerateRequest) -> None:
        """Send if a stream stands; otherwise drop: after `Reconnected` the session says what still matters."""
        self.channel.soon(self._put, request)

    def cancel(self) -> None:
        """Ask the verifier to end the session; it answers with Finished. If the link is down, the session fails."""
        self.channel.soon(self.leave)

    def close(self) -> None:
        """Give up what is not finished: nobody reads the inbox any more."""
        self.channel.soon(self.leave)

    def fail(self, error: SessionError) -> None:
        """Tell the session that it cannot go on."""
        self.inbox.put(Failed(error))

    def leave(self) -> None:
        """`cancel`, on the channel's loop."""
        self._left = True
        if self._finished:
            return
        if self._outbox is not None:
            self._put(pb.GenerateRequest(cancel=pb.Cancel()))
        elif self._waiting_call is not None:
            self._leaving = self._leaving or asyncio.create_task(self._leave_queue(self._waiting_call))
        elif self._task is not None and (self._session_id or not self._asked):
            # A verifier that knows of the session forgets it after its lease. Cancelled is the task itself: a future of
            # another thread would tell it a turn of the loop later, when it may have asked.
            self._task.cancel()

    async def _leave_queue(self, call: Any) -> None:
        """The session is over at once. Its place may be on the way: whoever has it reads that nobody wants it."""
        self.inbox.put(Failed(left()))
        await self._write(call, pb.GenerateRequest(cancel=pb.Cancel()))
        await asyncio.sleep(GRACE_S)
        if self._task is not None and self._outbox is None:
            self._task.cancel()

    def _put(self, request: pb.GenerateRequest) -> None:
        if self._outbox is not None:
            self._outbox.put_nowait(request)

    async def _live(self) -> None:
        self._task = asyncio.current_task()
        try:
            if self._left:
                raise left()
            with self.channel.living(self):
                listening = asyncio.create_task(self._listen())
                try:
                    await self._streams()
                finally:
                    listening.cancel()
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
            try:
                broken = await self._stream()
            except SessionError as error:
                if error.reason not in FAILURES or self._left:
                    raise
                broken = self._failed(error)
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

    def _failed(self, error: SessionError) -> SessionError:
        """The verifier has forgotten the session; another may go on from the log, but not for ever."""
        self.failures += 1
        if self.failures > MOST_FAILURES:
            raise gave_up(error, self.failures, len(self._answer), self.open_request.seed) from error
        self._session_id = ""
        return error

    async def _stream(self) -> SessionError:
        """One stream from opening to its end; returns why it broke, if it did. Raises SessionError if all is over."""
        again = self._opened
        call, response = await self._open_patiently(again)
        self._opened = True
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
            if self._finished or transient(error) or error.code() is grpc.StatusCode.ABORTED:
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
        patience = OpenRetryPolicy(settings, again=again)
        retrying = tenacity.AsyncRetrying(retry=patience.worth_another_try, wait=patience.wait_s, reraise=True)
        self._trouble = "no answer in time"
        try:
            async with patience.deadline:
                return await retrying(self._open_stream, patience)
        except TimeoutError as error:
            raise patience.last_refusal or unreachable(self.channel.verifier, self._trouble) from error
        except grpc.aio.AioRpcError as error:
            raise SessionError.from_rpc(error) from error

    async def _open_stream(self, patience: OpenRetryPolicy) -> tuple[Any, Any]:
        """Open or resume; returns the call and its Opened, once that has come."""
        stub = self.channel.stub
        call: Any = stub.Generate(metadata=self.channel.metadata)
        writing: asyncio.Task[None] | None = None
        try:
            await call.wait_for_connection()
            self._asked = True
            opening = self._opening()
            in_pieces = opening.ByteSize() > WHOLE_OPEN_BYTES and self.channel.takes_open_pieces
            if in_pieces:
                writing = asyncio.create_task(self._write_pieces(call, opening.SerializeToString()))
            else:
                await self._write(call, pb.GenerateRequest(open=opening))
            response = await self._hear_opened(call, patience)
            self._check(response.opened)
        except BaseException as error:
            self._asked = False
            call.cancel()
            if self._left:  # while it was opened: nobody is to open it again
                raise left() from error
            if isinstance(error, TimeoutError):
                self._trouble = "it took the stream but did not open a session in time"
                await self.channel.move_on(stub)
                await self.channel.renew(stub)
            elif isinstance(error, grpc.aio.AioRpcError):
                said = SessionError.from_rpc(error)
                self._trouble = str(said)
                if said.reason == "NOT_OPEN" and in_pieces:  # an older verifier
                    self.channel.takes_open_pieces = False
                    return await self._open_stream(patience)
                if not self.target and (untrusted := refused_handshake(self.channel.verifier, self._trouble)):
                    raise untrusted from error
                if self._session_id and error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.OUT_OF_RANGE):
                    self._session_id = ""  # another life: the verifier was restarted or the lease has ended
                    return await self._open_stream(patience)
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    await self.channel.move_on(stub, leaving=said.reason == "DRAINING")
            elif isinstance(error, asyncio.CancelledError) and not _meant_for_this_task():
                raise TimeoutError from error  # the connection was retired
            raise
        finally:
            self._queued, self._waiting_call = False, None
            if writing is not None:
                writing.cancel()
        self._session_id, self._prompt_length = response.opened.session_id, response.opened.prompt_length
        self._prompt_fingerprint = response.opened.prompt_fingerprint or self._prompt_fingerprint
        self._prompt = list(response.opened.prompt_ids) or self._prompt
        return call, response

    async def _hear_opened(self, call: Any, patience: OpenRetryPolicy) -> pb.GenerateResponse:
        """Wait for Opened, for as long as the verifier says in time that it is on the way. Raises TimeoutError."""
        stalled_s = self.channel.settings.stalled_s
        if QUEUE_POSITION in dict(await asyncio.wait_for(call.initial_metadata(), stalled_s) or ()):
            self._asked, self._queued, self._waiting_call = False, True, call
            self._hear()
            patience.queued()
        while True:
            response = await asyncio.wait_for(call.read(), None if self._queued else stalled_s)
            kind = response.WhichOneof("message") if response is not grpc.aio.EOF else None
            if not isinstance(response, pb.GenerateResponse) or kind not in ("opened", "open_progress"):
                raise SessionError("INTERNAL", "NO_OPENED", "the verifier did not begin by opening a session")
            if kind == "opened":
                return response
            self._hear()
            self.downlink_bytes += response.ByteSize()
            patience.progressed(response.open_progress.received_bytes)
            if response.open_progress.queue_position:  # it is full: the deadline is that of a wait for a place
                self._asked, self._waiting_call = False, call
                patience.queued()

    def _check(self, opened: pb.Opened) -> None:
        """The answer must go on with the words it began with. Raises SessionError."""
        self._check_target(opened.model_info.target_fingerprint)
        known = self._prompt_fingerprint
        if (self._opened and opened.prompt_length != self._prompt_length) or (
            known and opened.prompt_fingerprint not in (0, known)
        ):
            raise prompt_changed()

    def _check_target(self, target: str) -> None:
        """A verifier with other weights would go on with other words. Raises SessionError."""
        if self.target and target != self.target:
            raise SessionError(
                "FAILED_PRECONDITION",
                "TARGET_CHANGED",
                f"the verifier at {self.channel.verifier} came back with another target ({target} instead of "
                f"{self.target}), which would go on with other words; ask again from the beginning",
            )
        self.target = target

    def _opening(self) -> pb.Open:
        request = self._resuming() if self._session_id else self._anew()
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
            resume=pb.Resume(
                session_id=self._session_id,
                known_length=self._prompt_length + len(self._answer),
                known_prompt_ids=len(self._prompt),
            ),
            drafter_vocabulary_fingerprint=self.open_request.drafter_vocabulary_fingerprint,
            want_prompt_ids=self.open_request.want_prompt_ids and not self._knows_prompt(),
            incremental=True,
        )

    def _knows_prompt(self) -> bool:
        return self._opened and len(self._prompt) == self._prompt_length

    def _anew(self) -> pb.Open:
        request = pb.Open()
        request.CopyFrom(self.open_request)
        del request.continue_from[:]
        request.continue_from.extend(self._answer)
        request.prompt_fingerprint = self._prompt_fingerprint
        if self._knows_prompt() and request.WhichOneof("prompt") != "prompt_ids":
            # What the template makes of a conversation may have changed, as with a date in it.
            by_ids = pb.Open(prompt_ids=pb.TokenIds(ids=self._prompt))
            if request.ByteSize() + by_ids.ByteSize() <= MAX_MESSAGE_BYTES:
                request.MergeFrom(by_ids)
                request.want_prompt_ids = False
        return request

    async def _listen(self) -> None:
        """Tell the session when it hears nothing, whatever the reason, and say so while there still is an answer."""
        settings = self.channel.settings
        while True:
            # A ping leaves after at most one and a half times `quiet_s`, and takes a round trip.
            usual_s = 1.5 * (settings.quiet_s + (self.rtt.latest_ms or 0.0) / 1e3)
            patience_s = self._heard_s + max(settings.waiting_s, usual_s) - time.monotonic()
            if patience_s > 0 or self.waiting or self._queued:
                await asyncio.sleep(max(patience_s, settings.quiet_s / 4))
            else:
                self.waiting = True
                self.inbox.put(LinkChanged(True))

    def _hear(self) -> None:
        self._heard_s = time.monotonic()
        if self.waiting:
            self.waiting = False
            self.inbox.put(LinkChanged(False))

    def _take(self, response: pb.GenerateResponse) -> None:
        self._hear()
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
        elif kind == "prompt_ids":
            self._take_prompt(response.prompt_ids)
            return
        self.inbox.put(Heard(response, time.perf_counter() * 1e3, self.rtt.latest_ms))

    def _take_prompt(self, piece: pb.PromptIds) -> None:
        known = len(self._prompt)
        if self._knows_prompt() or not piece.start <= known:  # it may come twice
            return
        self._prompt.extend(piece.ids[known - piece.start :])
        del self._prompt[self._prompt_length :]
        if self._knows_prompt():
            self.inbox.put(PromptKnown(self._prompt))

    async def _write_pieces(self, call: Any, data: bytes) -> None:
        for start in range(0, len(data), PIECE_BYTES):
            end = start + PIECE_BYTES
            piece = pb.OpenPiece(data=data[start:end], last=end >= len(data))
            await self._write(call, pb.GenerateRequest(open_piece=piece))

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


def _meant_for_this_task() -> bool:
    """Whether a CancelledError is for the present task; gRPC also raises it when only the call was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
