"""The gRPC service: streams attach to sessions, feed them drafts, and tell devices how the log grows.

A stream's writer sends whatever the log has beyond what it sent before. So a slow reader costs no memory beyond the log
itself, several steps may travel in one commit, and resuming is nothing but attaching with a smaller `sent`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import StatusCode
from outrider.v1 import verifier_pb2 as pb
from outrider.v1 import verifier_pb2_grpc as pb_grpc

from cloud_verifier.errors import VerifierError, invalid
from cloud_verifier.opening import (
    OBJECTIVES,
    Served,
    change_patience,
    check_ids,
    check_model,
    check_version,
    new_session,
    vocabulary_pieces,
)
from cloud_verifier.scheduler import Scheduler
from cloud_verifier.sessions import Echo, FinishReason, Session
from speculation.line import LineError

log = logging.getLogger(__name__)

RETRY_ELSEWHERE_S = 0.1  # what a device waits that knows of one address only: a successor may have it already
COMMIT_TOKENS = 64  # what drafted_mask can speak of
Context = grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse]
OBJECTIVE_NAMES = {objective: name for name, objective in OBJECTIVES.items()}
REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: pb.FINISH_REASON_CANCELLED,
}


@dataclass(frozen=True)
class ServiceSettings:
    """lease_s: how long a session whose stream broke is kept. open_timeout_s: how long a stream may take to open."""

    lease_s: float = 60.0
    open_timeout_s: float = 10.0


class VerifierService(pb_grpc.VerifierServiceServicer):
    """Serves one model."""

    def __init__(self, served: Served, scheduler: Scheduler, settings: ServiceSettings | None = None) -> None:
        self._served, self._scheduler = served, scheduler
        self._settings = settings or ServiceSettings()
        self._sessions: dict[str, Session] = {}
        self._draining = False
        self._emptied = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="opening")

    def close(self) -> None:
        """Free the service's thread, once no streams are left."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    @property
    def sessions(self) -> int:
        """Sessions known: attached, or waiting for their device to come back."""
        return len(self._sessions)

    @property
    def streams(self) -> int:
        """Sessions with a device at the other end just now."""
        return sum(session.attached for session in list(self._sessions.values()))

    def drain(self) -> None:
        """Open no more sessions. Those that are open go on, and may be resumed here."""
        self._draining = True
        self._note_if_empty()

    async def emptied(self) -> None:
        """Wait until a draining service has no more streams."""
        await self._emptied.wait()

    def hand_back(self) -> None:
        """End every session: its device gets what is written, and goes on elsewhere from there."""
        for session in list(self._sessions.values()):
            if not session.over:
                session.error = _leaving("this verifier leaves; open the session again with continue_from to go on")
                self._scheduler.remove(session)
            session.changed.set()

    def _note_if_empty(self) -> None:
        if self._draining and not self.streams:
            self._emptied.set()

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Any) -> pb.GetModelInfoResponse:
        try:
            check_model(request.model, self._served)
        except VerifierError as error:
            await _refuse(context, error)
        return self._served.model_info()

    async def GetVocabulary(self, request: pb.GetVocabularyRequest, context: Any) -> None:  # type: ignore[override]
        try:
            check_model(request.model, self._served)
        except VerifierError as error:
            await _refuse(context, error)
        for piece in vocabulary_pieces(self._served.codec.vocabulary):
            await context.write(piece)  # which waits for a slow reader, so one piece at a time is in memory

    async def Generate(self, _requests: Any, context: Context) -> None:  # type: ignore[override]
        session: Session | None = None
        attachment = 0
        keep = False
        try:
            session, opened = await self._open(context)
            attachment = session.attachment
            await context.write(pb.GenerateResponse(opened=opened))
            await self._serve(session, attachment, context)
        except VerifierError as error:
            keep = error.resumable
            await _refuse(context, error)
        except DecodeError:
            await _refuse(context, invalid("UNDECODABLE", "these bytes are no GenerateRequest of outrider.v1"))
        except (asyncio.CancelledError, grpc.aio.BaseError):
            keep = True  # the stream broke; the device may come back
            raise
        except Exception:
            log.exception("a stream failed through a fault of the verifier")
            fault = "the verifier made a mistake with this session; open it again with continue_from to go on"
            await _refuse(context, VerifierError(StatusCode.INTERNAL, "VERIFIER_FAULT", fault))
        finally:
            if session is not None and session.attachment == attachment:
                self._detach(session, keep)

    # -- opening and leaving ------------------------------------------------------------------------------------------

    async def _open(self, context: Context) -> tuple[Session, pb.Opened]:
        try:
            request = await asyncio.wait_for(context.read(), self._settings.open_timeout_s)
        except TimeoutError as error:
            raise VerifierError(
                StatusCode.DEADLINE_EXCEEDED, "OPEN_TIMEOUT", "the stream sent no Open message in time; send it first"
            ) from error
        if not isinstance(request, pb.GenerateRequest) or request.WhichOneof("message") != "open":
            raise VerifierError(
                StatusCode.FAILED_PRECONDITION, "NOT_OPEN", "the first message on a stream must be Open"
            )
        opened = request.open
        if opened.HasField("resume"):
            session = self._resume(opened)
            prompt_ids: list[int] = []
        else:
            if self._draining:
                raise _leaving("this verifier takes no more sessions, for it is about to leave; use another one")
            self._check_room()
            # On another thread, for a megabyte of text takes a second to become tokens; one, so that it takes one core.
            loop = asyncio.get_running_loop()
            session = await loop.run_in_executor(self._thread, new_session, opened, self._served)
            self._check_room()
            self._sessions[session.session_id] = session
            if not session.over:
                self._scheduler.add(session)
            prompt_ids = session.line.log[: session.prompt_length] if opened.want_prompt_ids else []
        fingerprint = opened.drafter_vocabulary_fingerprint
        return session, pb.Opened(
            session_id=session.session_id,
            lease_seconds=round(self._settings.lease_s),
            model_info=self._served.model_info(),
            prompt_length=session.prompt_length,
            prompt_ids=prompt_ids,
            resumed_at=session.sent,
            max_lookahead=session.max_lookahead,
            vocabulary_matches=fingerprint == self._served.codec.fingerprint,
            objective=pb.Objective.Name(OBJECTIVE_NAMES[session.patience.objective]),
            max_patience_ms=self._served.max_patience_ms,
        )

    def _check_room(self) -> None:
        if self._scheduler.full:
            places = self._scheduler.engine.info.max_sequences
            raise VerifierError(
                StatusCode.RESOURCE_EXHAUSTED,
                "SESSIONS",
                f"all {places} places of this verifier are taken; try again later",
                retry_after_s=1.0,
            )

    def _resume(self, opened: pb.Open) -> Session:
        check_version(opened)
        session = self._sessions.get(opened.resume.session_id)
        if session is None:
            raise VerifierError(
                StatusCode.NOT_FOUND,
                "SESSION",
                "this session is not known here, or its lease has ended; open it again with continue_from",
            )
        known = opened.resume.known_length
        if not session.prompt_length <= known <= session.line.length:
            raise VerifierError(
                StatusCode.OUT_OF_RANGE,
                "KNOWN_LENGTH",
                f"the device claims to know {known} tokens, but the log has {session.prompt_length} (the prompt) to "
                f"{session.line.length}; open again with continue_from",
            )
        session.attachment += 1
        session.attached = True
        session.sent = known
        session.statistics.resumes += 1
        session.line.forget()
        session.patience.turnaround.forget()
        session.changed.set()  # an old stream, if it still hangs, sees that it was replaced
        self._scheduler.wake()
        return session

    def _detach(self, session: Session, keep: bool) -> None:
        session.attached = session.half_closed = False
        self._note_if_empty()
        if not keep:
            self._forget(session)
            return
        attachment = session.attachment
        loop = asyncio.get_running_loop()
        loop.call_later(self._settings.lease_s, self._expire, session, attachment)
        self._scheduler.wake()

    def _expire(self, session: Session, attachment: int) -> None:
        if not session.attached and session.attachment == attachment:
            self._forget(session)

    def _forget(self, session: Session) -> None:
        self._scheduler.remove(session)
        self._sessions.pop(session.session_id, None)

    # -- a stream's life ----------------------------------------------------------------------------------------------

    async def _serve(self, session: Session, attachment: int, context: Context) -> None:
        sending = asyncio.Lock()  # gRPC takes one write at a time
        reader = asyncio.create_task(self._read(session, attachment, context, sending))
        writer = asyncio.create_task(self._write(session, attachment, context, sending))
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            if reader.done() and reader.exception() is None and not writer.done():
                if session.attachment == attachment:
                    session.half_closed = True  # no drafts will come
                    self._scheduler.wake()
                await asyncio.wait({writer})
            for task in (reader, writer):
                if task.done() and (error := task.exception()) is not None:
                    raise error
        finally:
            reader.cancel()
            writer.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)

    async def _read(self, session: Session, attachment: int, context: Context, sending: asyncio.Lock) -> None:
        while isinstance(request := await context.read(), pb.GenerateRequest):
            _check_attached(session, attachment)
            kind = request.WhichOneof("message")
            if kind == "draft":
                self._draft(session, request.draft)
            elif kind == "ping":
                pong = pb.Pong(echo_sent_at_us=request.ping.sent_at_us)
                async with sending:
                    await context.write(pb.GenerateResponse(pong=pong))
            elif kind == "cancel":
                if not session.over:
                    session.finish = FinishReason.CANCELLED
                    self._scheduler.remove(session)
                    session.changed.set()
            elif kind == "open":
                raise invalid("OPENED_TWICE", "this stream is open already; use a stream per session")
            else:
                raise invalid("EMPTY_MESSAGE", "a request must be one of open, draft, ping, cancel")

    def _draft(self, session: Session, draft: pb.Draft) -> None:
        limit = session.max_lookahead
        if len(draft.tokens) > limit:
            raise invalid("DRAFT_TOO_LONG", f"a draft of {len(draft.tokens)} tokens; at most {limit} are allowed")
        if draft.confidence and len(draft.confidence) != len(draft.tokens):
            raise invalid(
                "CONFIDENCE",
                f"{len(draft.confidence)} confidences for {len(draft.tokens)} tokens; send as many or none",
            )
        check_ids(draft.tokens, self._served.engine.vocabulary_size, "the draft")
        if draft.start > session.line.length + limit:
            raise VerifierError(
                StatusCode.OUT_OF_RANGE,
                "DRAFT_TOO_FAR",
                f"the draft starts at {draft.start}, more than {limit} past the log's {session.line.length} tokens",
            )
        now_s = time.monotonic()
        confidences = [confidence / 255 for confidence in draft.confidence]
        asks = not (draft.HasField("patience_ms") or draft.objective)
        try:
            session.draft(draft.start, draft.tokens, draft.known_length, confidences, now_s, asks=asks)
        except LineError as error:
            raise VerifierError(StatusCode.ABORTED, "KNOWN_LENGTH", str(error), resumable=True) from error
        change_patience(session.patience, draft)
        session.echo = Echo(draft.sent_at_us, now_s)
        self._scheduler.wake()

    async def _write(self, session: Session, attachment: int, context: Context, sending: asyncio.Lock) -> None:
        while True:
            async with sending:  # while another write was under way, a new stream may have taken over
                _check_attached(session, attachment)
                if session.sent < session.line.length:
                    await context.write(pb.GenerateResponse(commit=self._commit(session)))
                    continue
                if session.error is not None:
                    raise session.error
                if session.finish is not None:
                    await context.write(pb.GenerateResponse(finished=_finished(session)))
                    return
                session.changed.clear()
            await session.changed.wait()

    def _commit(self, session: Session) -> pb.Commit:
        now_s = time.monotonic()
        start, first = session.sent, session.sent - session.prompt_length
        last = min(first + COMMIT_TOKENS, len(session.drafted))
        session.sent = session.prompt_length + last
        session.patience.turnaround.sent(session.sent, now_s * 1e3)
        commit = pb.Commit(
            start=start,
            tokens=session.line.log[start : session.sent],
            drafted_mask=sum(1 << i for i, hit in enumerate(session.drafted[first:last]) if hit),
            text="".join(session.text.pieces[first:last]) if session.want_text else "",
            echo_sent_at_us=session.echo.sent_at_us,
            hold_us=_uint32((now_s - session.echo.received_s) * 1e6),
            queue_us=_uint32(session.last_step.queue_us),
            forward_us=_uint32(session.last_step.forward_us),
            batch_size=session.last_step.batch_size,
            draft_budget=session.draft_budget.tokens,
        )
        if session.want_text and last - first > 1:
            commit.text_lengths.extend(len(piece.encode()) for piece in session.text.pieces[first:last])
        if session.sampler.params.logprobs is not None:
            for entry in session.logprobs[first:last]:
                commit.logprobs.add(logprob=entry.logprob, top_ids=entry.top_ids, top_logprobs=entry.top_logprobs)
        return commit


async def _refuse(context: Any, error: VerifierError) -> None:
    await context.abort(error.code, error.sentence, error.trailing_metadata())


def _leaving(sentence: str) -> VerifierError:
    return VerifierError(StatusCode.UNAVAILABLE, "DRAINING", sentence, retry_after_s=RETRY_ELSEWHERE_S)


def _check_attached(session: Session, attachment: int) -> None:
    if session.attachment != attachment:
        raise VerifierError(
            StatusCode.ABORTED, "REPLACED", "another stream has resumed this session; this one ends", resumable=True
        )


def _uint32(value: float) -> int:
    """Microseconds as the contract counts them: a session that waits for more than 71 minutes has no more to say."""
    return min(max(0, round(value)), 0xFFFFFFFF)


def _finished(session: Session) -> pb.Finished:
    assert session.finish is not None
    stats = session.statistics
    return pb.Finished(
        reason=REASONS[session.finish],
        text=session.text.rest() if session.want_text else "",
        usage=pb.Usage(prompt_tokens=session.prompt_length, completion_tokens=len(session.drafted)),
        statistics=pb.SessionStatistics(
            drafted_tokens=session.line.drafted,
            dropped_tokens=session.line.dropped,
            verified_tokens=stats.verified_tokens,
            accepted_tokens=stats.accepted_tokens,
            target_forwards=stats.target_forwards,
            fills=stats.fills,
            forward_us=stats.forward_us,
            resumes=stats.resumes,
            trimmed_tokens=stats.trimmed_tokens,
            waited_us=stats.waited_us,
        ),
        length=session.line.length,
    )
