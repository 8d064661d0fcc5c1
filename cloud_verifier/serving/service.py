"""The gRPC service: streams open sessions or attach to them, and leave them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import StatusCode
from outrider.v1 import verifier_pb2 as pb
from outrider.v1 import verifier_pb2_grpc as pb_grpc

from cloud_verifier.errors import VerifierError, invalid, refuse
from cloud_verifier.log_redaction import log_failure
from cloud_verifier.scheduling.scheduler import Scheduler
from cloud_verifier.scheduling.session import Session
from cloud_verifier.security.principals import Principal, caller
from cloud_verifier.serving.admission import Admission, AdmissionSettings, Place
from cloud_verifier.serving.fair_queue import FairQueue
from cloud_verifier.serving.open_progress import OpenProgressTeller
from cloud_verifier.serving.open_request import (
    OBJECTIVES,
    Served,
    check_model,
    check_quota,
    check_size,
    check_version,
    most_prompt_tokens,
    new_session,
    prompt_size,
    vocabulary_pieces,
)
from cloud_verifier.serving.stream import PROMPT_PIECE_TOKENS, Context, SessionStream, StreamSettings
from cloud_verifier.serving.stream_reader import read_open

log = logging.getLogger(__name__)

DEADLINE_SLACK_S = 1.0
OBJECTIVE_NAMES = {objective: name for name, objective in OBJECTIVES.items()}
MAX_OPENED_BYTES = 1 << 20  # a message limit: a longer one with the prompt's ids goes without them
RETRY_ELSEWHERE_S = 0.1  # what a device waits that knows of one address only: a successor may have it already
# Prompts are turned into tokens in three queues by their size, each with a thread, so that a short one never waits for
# a long one. A prompt takes about 5 ms at most in the first, 80 ms in the second, and a second in the last.
QUEUES_BYTES = (4 << 10, 64 << 10, math.inf)
SILENT = (
    "the device neither drafted nor read for a while, and others wait for its place; open the session again with "
    "continue_from to go on"
)
GOODBYE_S = 5.0  # how long to try to tell a device why its stream ends


@dataclass(frozen=True)
class ServiceSettings:
    """lease_s: how long a session whose stream broke is kept. open_timeout_s: how long a stream may take to open.
    away_s: how long a device may be away, or silent, before its session gives way to one that waits for a place."""

    lease_s: float = 60.0
    open_timeout_s: float = 10.0
    away_s: float = 3.0
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)
    stream: StreamSettings = field(default_factory=StreamSettings)


class VerifierService(pb_grpc.VerifierServiceServicer):
    """Serves one model."""

    def __init__(self, served: Served, scheduler: Scheduler, settings: ServiceSettings | None = None) -> None:
        self._served, self._scheduler = served, scheduler
        self.settings = self._settings = settings or ServiceSettings()
        self._sessions: dict[str, Session] = {}
        self._places: dict[str, Place] = {}
        self._leases: dict[str, tuple[asyncio.TimerHandle, ...]] = {}  # of sessions whose device is away
        self._admission = Admission(self, self._settings.admission)
        self._draining = self._handed_over = False
        self._emptied = asyncio.Event()
        scheduler.on_room = self._admission.room_changed
        self._queues = {most: FairQueue("opening") for most in QUEUES_BYTES}

    def close(self) -> None:
        """Free the service's threads, once no streams are left."""
        for queue in self._queues.values():
            queue.close()

    @property
    def sessions(self) -> int:
        """Sessions known: attached, or waiting for their device to come back."""
        return len(self._sessions)

    @property
    def waiting(self) -> int:
        """Sessions that wait for a place."""
        return self._admission.waiting

    @property
    def principals(self) -> int:
        """Principals that have sessions, wait for a place, or owe tokens."""
        return self._admission.accounts

    def knows(self, session_id: str) -> bool:
        """Whether this is a session of this service."""
        return session_id in self._sessions

    @property
    def streams(self) -> int:
        """Sessions with a device at the other end just now."""
        return sum(session.attached for session in list(self._sessions.values()))

    def drain(self) -> None:
        """Open no more sessions. Those that are open go on, and may be resumed here."""
        self._draining = True
        self._admission.close(_leaves())
        self._note_if_empty()

    async def emptied(self) -> None:
        """Wait until a draining service has no more streams."""
        await self._emptied.wait()

    def hand_over_sessions(self) -> None:
        """End every session: its device gets what is written, and goes on elsewhere from there. None comes after it."""
        self._handed_over = True
        for session in list(self._sessions.values()):
            if not session.over:
                session.error = _leaving("this verifier leaves; open the session again with continue_from to go on")
                self._scheduler.remove(session)
            session.changed.set()

    def end_sessions(self, objection: Callable[[Principal], VerifierError | None]) -> None:
        """End the sessions of those who may not go on, with why; answers that are complete may be read to their end."""
        expelled = 0
        for session in list(self._sessions.values()):
            error = objection(self._places[session.session_id].principal)
            if error is None or (session.attached and session.over):
                continue
            expelled += 1
            if session.attached:
                session.error = error
                self._scheduler.remove(session)
                session.changed.set()
            else:
                self._forget(session)
        if expelled:
            log.info("ended %d sessions of those who may not go on", expelled)

    def reclaim(self) -> None:
        """Give the places of devices that are silent to those that wait for one. To be called now and then."""
        for _ in range(self.waiting):
            if not self._end_silent():
                return

    def _end_silent(self) -> bool:
        """End the session that has waited longest for its device, if that is too long; whether there was one."""
        unread_tokens, now_s = self._scheduler.settings.unread_tokens, time.monotonic()
        silent = [
            (silent_s, session)
            for session in self._sessions.values()
            if session.attached and (silent_s := session.silent_s(unread_tokens, now_s)) >= self._settings.away_s
        ]
        if not silent:
            return False
        _, session = max(silent, key=lambda pair: pair[0])
        session.error = VerifierError(StatusCode.ABORTED, "SILENT", SILENT)
        self._scheduler.remove(session)
        session.changed.set()
        return True

    def _note_if_empty(self) -> None:
        if self._draining and not self.streams:
            self._emptied.set()

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Any) -> pb.GetModelInfoResponse:
        try:
            check_model(request.model, self._served)
        except VerifierError as error:
            await refuse(context, error)
        return self._served.model_info()

    async def ListModels(self, _request: pb.ListModelsRequest, _context: Any) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[self._served.model_info()])

    async def GetVocabulary(self, request: pb.GetVocabularyRequest, context: Any) -> None:  # type: ignore[override]
        try:
            check_model(request.model, self._served)
        except VerifierError as error:
            await refuse(context, error)
        for piece in vocabulary_pieces(self._served.codec.vocabulary):
            await context.write(piece)  # which waits for a slow reader, so one piece at a time is in memory

    async def Generate(self, _requests: Any, context: Context) -> None:  # type: ignore[override]
        error = await self._live(context)
        if error is not None:
            # A device that does not read does not read this either, until its connection ends.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_S):
                    await refuse(context, error)

    async def _live(self, context: Context) -> VerifierError | None:
        """A stream from its Open to its end, which may be an error to tell the device."""
        session: Session | None = None
        attachment = 0
        keep = known = False
        try:
            session, opened, untold_prompt = await self._open(context)
            attachment = session.attachment
            known = session.statistics.resumes > 0
            place = self._places[session.session_id]
            stream = SessionStream(session, place, self._scheduler, context, self._settings.stream, untold_prompt)
            await stream.send(pb.GenerateResponse(opened=opened))
            known = True
            await stream.serve()
        except VerifierError as error:
            keep = known and error.resumable
            return error
        except DecodeError:
            return invalid("UNDECODABLE", "these bytes are no GenerateRequest of outrider.v1")
        except (asyncio.CancelledError, grpc.aio.BaseError):
            # The stream broke. The device may come back, if it was told what to come back to.
            keep = known and not _past_deadline(context)
            raise
        except Exception as error:
            log_failure(log, "a stream failed through a fault of the verifier", error)
            fault = "the verifier made a mistake with this session; open it again with continue_from to go on"
            return VerifierError(StatusCode.INTERNAL, "VERIFIER_FAULT", fault)
        finally:
            if session is not None and session.attachment == attachment:
                self._detach(session, keep)
        return None

    # -- opening and leaving ------------------------------------------------------------------------------------------

    async def _open(self, context: Context) -> tuple[Session, pb.Opened, range]:
        """A session, what its device is told first, and the positions of the prompt whose ids follow in pieces."""
        try:
            request = await read_open(context, self._settings.open_timeout_s)
        except TimeoutError as error:
            raise VerifierError(
                StatusCode.DEADLINE_EXCEEDED, "OPEN_TIMEOUT", "the stream sent no Open message in time; send it first"
            ) from error
        if not isinstance(request, pb.GenerateRequest) or request.WhichOneof("message") != "open":
            raise VerifierError(
                StatusCode.FAILED_PRECONDITION, "NOT_OPEN", "the first message on a stream must be Open"
            )
        opened = request.open
        check_version(opened)
        if opened.HasField("resume"):
            session = self._resume(opened)
        else:
            session = await self._begin(opened, context)
        fingerprint = opened.drafter_vocabulary_fingerprint
        reply = pb.Opened(
            session_id=session.session_id,
            lease_seconds=round(self._settings.lease_s),
            model_info=self._served.model_info(),
            prompt_length=session.prompt_length,
            resumed_at=session.sent,
            max_lookahead=session.max_lookahead,
            max_tree_nodes=session.max_nodes,
            vocabulary_matches=fingerprint == self._served.codec.fingerprint,
            objective=pb.Objective.Name(OBJECTIVE_NAMES[session.patience.objective]),
            max_patience_ms=self._served.max_patience_ms,
            prompt_fingerprint=session.prompt_fingerprint,
        )
        return session, reply, _tell_prompt(opened, session, reply)

    async def _begin(self, opened: pb.Open, context: Context) -> Session:
        """A new session, once it has a place."""
        if self._draining:
            raise _leaves()
        check_model(opened.model, self._served)
        principal, admission = caller.get(), self._admission
        admission.check_rate(principal)
        size = prompt_size(opened, self._served)
        # A refusal costs as many tokens as the prompt has at least, but no more than a prompt that is not refused.
        cost = max(1, min(size.least_tokens, most_prompt_tokens(self._served, principal.quota)))
        try:
            check_size(size, self._served, principal.quota)
        except VerifierError:
            admission.charge(principal, cost)
            raise

        place: Place | None = None
        try:
            async with OpenProgressTeller(context, incremental=opened.incremental) as progress:
                place = await admission.place(principal, progress.queued)
                progress.placed()
                # On another thread, for a megabyte of text takes a second to become tokens.
                queue = next(queue for most, queue in self._queues.items() if size.effort_bytes <= most)
                session = await queue.run(principal.name, partial(new_session, opened, self._served))
                check_quota(session.prompt_length, principal.quota)
                if self._handed_over:
                    raise _leaves()
        except BaseException as error:
            if place is not None:
                if isinstance(error, VerifierError) and not self._handed_over:
                    place.charge(cost)
                place.leave()
            raise
        session.owner = principal.name
        self._sessions[session.session_id], self._places[session.session_id] = session, place
        if not session.over:
            self._scheduler.add(session)
        place.enter()
        return session

    def _resume(self, opened: pb.Open) -> Session:
        session = self._sessions.get(opened.resume.session_id)
        if session is None or session.owner != caller.get().name:  # to others it does not exist
            raise VerifierError(
                StatusCode.NOT_FOUND,
                "SESSION",
                "this session is not known here, or its lease has ended; open it again with continue_from",
            )
        known = opened.resume.known_length
        if not session.oldest <= known <= session.line.length:
            raise VerifierError(
                StatusCode.OUT_OF_RANGE,
                "KNOWN_LENGTH",
                f"the device claims to know {known} tokens, but the log can be told from {session.oldest} to "
                f"{session.line.length}; open again with continue_from",
            )
        self._end_lease(session)
        self._places[session.session_id].principal = caller.get()
        session.attachment += 1
        session.attached, session.half_closed = True, False
        session.sent = known
        session.statistics.resumes += 1
        session.line.forget()
        session.cut_short = False
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
        session.detached_s = time.monotonic()
        loop = asyncio.get_running_loop()
        self._leases[session.session_id] = (
            loop.call_later(self._settings.lease_s, self._forget, session),
            loop.call_later(self._settings.away_s, self._give_way, session),
        )
        self._scheduler.wake()

    def _give_way(self, session: Session) -> None:
        if self.waiting and not session.over:
            self._forget(session)

    def _end_lease(self, session: Session) -> None:
        """It is resumed or forgotten. A timer that is left would hold its log in memory until the lease ends."""
        for timer in self._leases.pop(session.session_id, ()):
            timer.cancel()

    def _forget(self, session: Session) -> None:
        self._end_lease(session)
        self._scheduler.remove(session)
        if self._sessions.pop(session.session_id, None) is not None:
            place = self._places.pop(session.session_id)
            place.charge(session.line.length)
            place.leave()

    # -- places, for the admission ------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Sessions that would find a place now."""
        return self._scheduler.room

    def free_place(self, principal: str | None = None, *, politely: bool = False) -> bool:
        """Give up the session whose device has been away longest, or silent; see `SessionPlaces`."""
        least_s = time.monotonic() - (self._settings.away_s if politely else 0)
        away = [
            session
            for session in self._sessions.values()
            if not session.attached
            and session.detached_s <= least_s
            and (session.owner == principal if principal is not None else not session.over)
        ]
        if not away:
            return politely and self._end_silent()
        self._forget(min(away, key=lambda session: session.detached_s))
        return True


def _tell_prompt(opened: pb.Open, session: Session, reply: pb.Opened) -> range:
    """Put the prompt's ids into the reply if they are wanted and few; returns the positions left for pieces."""
    if not opened.want_prompt_ids:
        return range(0)
    if opened.HasField("resume"):
        return range(
            opened.resume.known_prompt_ids if opened.incremental else session.prompt_length, session.prompt_length
        )
    if session.prompt_length > PROMPT_PIECE_TOKENS and opened.incremental:
        return range(session.prompt_length)
    reply.prompt_ids.extend(session.line.log[: session.prompt_length])
    if reply.ByteSize() > MAX_OPENED_BYTES:  # its device can have an answer without drafting, or nothing
        del reply.prompt_ids[:]
    return range(0)


def _past_deadline(context: Context) -> bool:
    """Whether the stream ended because its device had set it a time: then nobody will come back for the session.

    A device's own clock runs out first, by what its call took to get here.
    """
    left_s = context.time_remaining()
    return left_s is not None and left_s <= DEADLINE_SLACK_S


def _leaves() -> VerifierError:
    return _leaving("this verifier takes no more sessions, for it is about to leave; use another one")


def _leaving(sentence: str) -> VerifierError:
    return VerifierError(StatusCode.UNAVAILABLE, "DRAINING", sentence, retry_after_s=RETRY_ELSEWHERE_S)
