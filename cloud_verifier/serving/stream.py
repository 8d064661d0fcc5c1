"""One stream of a session: drafts come in, the log goes out.

The writer sends whatever the log has beyond what it sent before, one message at a time. So a slow reader costs no
memory beyond the log itself, several steps may travel in one commit, and resuming is nothing but attaching with a
smaller `sent`. The reader takes messages no faster than their rate allows; what a device sends meanwhile waits on its
own side, for the connection's flow control holds it there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from grpc import StatusCode
from outrider.v1 import verifier_pb2 as pb

from cloud_verifier.errors import VerifierError, invalid
from cloud_verifier.scheduling.scheduler import Scheduler
from cloud_verifier.scheduling.session import Echo, FinishReason, Session
from cloud_verifier.serving.admission import Place
from cloud_verifier.serving.open_request import change_patience, check_ids
from cloud_verifier.serving.stream_reader import leave
from cloud_verifier.serving.token_bucket import TokenBucket
from cloud_verifier.serving.write_timeout import WriteTimeout
from speculation.draft_tree import MAX_LOOKAHEAD, DraftError

COMMIT_TOKENS = 64  # what drafted_mask can speak of
PROMPT_PIECE_TOKENS = 1024
Context = grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse]
REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: pb.FINISH_REASON_CANCELLED,
}


@dataclass(frozen=True)
class StreamSettings:
    """write_timeout_s: how long a device may leave a message unread. messages_per_s: drafts and pings that are taken
    from a stream, in the long run and `burst_messages` at once."""

    write_timeout_s: float = 30.0
    messages_per_s: float = 500.0
    burst_messages: float = 1000.0


class SessionStream:
    """A stream that is attached to a session, until it ends or another takes over."""

    def __init__(
        self,
        session: Session,
        place: Place,
        scheduler: Scheduler,
        context: Context,
        settings: StreamSettings,
        untold_prompt: range = range(0),
    ) -> None:
        """untold_prompt: positions of the prompt whose ids the device lacks and wants."""
        self._session, self._place, self._scheduler = session, place, scheduler
        self._context, self._settings = context, settings
        self._attachment = session.attachment
        self._untold_prompt = untold_prompt
        self._rate = TokenBucket(settings.messages_per_s, settings.burst_messages)
        self._sending = asyncio.Lock()
        self._write_timeout = WriteTimeout(settings.write_timeout_s)
        self._complete = self._ended = False

    async def serve(self) -> None:
        """Read and write until the answer is complete. Raises VerifierError, and what gRPC raises."""
        session = self._session
        reader, writer = asyncio.create_task(self._read()), asyncio.create_task(self._write())
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            if reader.done() and reader.exception() is None and not writer.done():
                if session.attachment == self._attachment:
                    session.half_closed = True  # no drafts will come
                    self._scheduler.wake()
                await asyncio.wait({writer})
            for task in (reader, writer):
                if task.done() and (error := task.exception()) is not None:
                    raise error
        finally:
            self._ended = True
            self._write_timeout.close()
            leave(reader)
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def send(self, response: pb.GenerateResponse) -> None:
        """Write a message. Raises VerifierError if the device does not read."""
        try:
            with self._write_timeout:
                await self._context.write(response)
        except TimeoutError as error:
            raise VerifierError(
                StatusCode.ABORTED,
                "SLOW_READER",
                f"the device read nothing for {self._settings.write_timeout_s:g} s, so this stream ends; resume the "
                "session to go on",
                resumable=True,
            ) from error

    # -- from the device -----------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        session = self._session
        while isinstance(request := await self._context.read(), pb.GenerateRequest) and not self._ended:
            self._check_attached()
            kind = request.WhichOneof("message")
            if kind == "draft":
                self._draft(request.draft)
            elif kind == "ping":
                pong = pb.GenerateResponse(pong=pb.Pong(echo_sent_at_us=request.ping.sent_at_us))
                async with self._sending:
                    if not self._complete and not self._ended:
                        await self.send(pong)
            elif kind == "cancel":
                if not session.over:
                    session.finish = FinishReason.CANCELLED
                    self._scheduler.remove(session)
                    session.changed.set()
            elif kind == "open":
                raise invalid("OPENED_TWICE", "this stream is open already; use a stream per session")
            else:
                raise invalid("EMPTY_MESSAGE", "a request must be one of open, draft, ping, cancel")
            if wait_s := self._rate.take(1):
                session.statistics.slowed_messages += 1
                await asyncio.sleep(wait_s)

    def _draft(self, draft: pb.Draft) -> None:
        session = self._session
        if draft.confidence and len(draft.confidence) != len(draft.tokens):
            raise invalid(
                "CONFIDENCE",
                f"{len(draft.confidence)} confidences for {len(draft.tokens)} tokens; send as many or none",
            )
        if draft.parents and len(draft.parents) != len(draft.tokens):
            raise invalid(
                "PARENTS", f"{len(draft.parents)} parents for {len(draft.tokens)} tokens; send as many or none"
            )
        check_ids(draft.tokens[:MAX_LOOKAHEAD], self._scheduler.engine.info.vocabulary_size, "the draft")
        now_s = time.monotonic()
        confidences = [confidence / 255 for confidence in draft.confidence[:MAX_LOOKAHEAD]]
        asks = not (draft.HasField("patience_ms") or draft.objective)
        try:
            session.draft(
                *(draft.start, draft.tokens, draft.known_length, confidences, now_s), parents=draft.parents, asks=asks
            )
        except DraftError as error:
            raise VerifierError(StatusCode.ABORTED, "KNOWN_LENGTH", str(error), resumable=True) from error
        change_patience(session.patience, draft)
        session.echo = Echo(draft.sent_at_us, now_s)
        self._scheduler.wake()

    # -- to the device -------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        session = self._session
        while True:
            async with self._sending:  # while another write was under way, a new stream may have taken over
                self._check_attached()
                if session.sent < session.line.length:
                    held_up = session.line.length - session.sent >= self._scheduler.settings.unread_tokens
                    await self.send(pb.GenerateResponse(commit=self._commit()))
                    if held_up:
                        self._scheduler.wake()
                    continue
                if session.error is not None:
                    raise session.error
                if session.finish is not None:
                    self._complete = True  # nothing follows a Finished
                    await self.send(pb.GenerateResponse(finished=_finished(session)))
                    return
                if self._untold_prompt:  # words go first: drafting may begin later, reading should not
                    await self.send(pb.GenerateResponse(prompt_ids=self._prompt_piece()))
                    continue
                session.changed.clear()
            await session.changed.wait()

    def _prompt_piece(self) -> pb.PromptIds:
        piece = self._untold_prompt[:PROMPT_PIECE_TOKENS]
        self._untold_prompt = self._untold_prompt[PROMPT_PIECE_TOKENS:]
        return pb.PromptIds(start=piece.start, ids=self._session.line.log[piece.start : piece.stop])

    def _commit(self) -> pb.Commit:
        session = self._session
        now_s = time.monotonic()
        start, first = session.sent, session.sent - session.prompt_length
        last = min(first + COMMIT_TOKENS, len(session.drafted))
        session.sent = session.prompt_length + last
        session.patience.turnaround.sent(session.sent, now_s * 1e3)
        self._place.charge(session.line.length)
        commit = pb.Commit(
            start=start,
            tokens=session.line.log[start : session.sent],
            drafted_mask=_mask(session.drafted[first:last]),
            own_mask=_mask(session.own[first:last]),
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
        session.drop_sent_text()
        return commit

    def _check_attached(self) -> None:
        if self._session.attachment != self._attachment:
            raise VerifierError(
                StatusCode.ABORTED, "REPLACED", "another stream has resumed this session; this one ends", resumable=True
            )


def _mask(flags: Sequence[bool]) -> int:
    return sum(1 << i for i, flag in enumerate(flags) if flag)


def _uint32(value: float) -> int:
    """Microseconds as the contract counts them: a session that waits for more than 71 minutes has no more to say."""
    return min(max(0, round(value)), 0xFFFFFFFF)


def _finished(session: Session) -> pb.Finished:
    assert session.finish is not None
    stats = session.statistics
    # What a cancelled answer holds back is not certain: whoever goes on with it is told then.
    tells_rest = session.want_text and session.finish is not FinishReason.CANCELLED
    return pb.Finished(
        reason=REASONS[session.finish],
        text=session.text.rest() if tells_rest else "",
        usage=pb.Usage(
            prompt_tokens=session.prompt_length,
            completion_tokens=len(session.drafted),
            cached_prompt_tokens=session.found or 0,
        ),
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
            slowed_messages=stats.slowed_messages,
            own_verified_tokens=stats.own_verified_tokens,
            own_accepted_tokens=stats.own_accepted_tokens,
        ),
        length=session.line.length,
    )
