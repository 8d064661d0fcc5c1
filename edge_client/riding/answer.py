"""One answer from its first word to its last: what the verifier says, the link's state, and the device's own words if
need be.

Its thread never calls the drafter. Drafting goes on beside it, see `riding_loop`, and the device's own words are
written on a thread of their own, so that a drafter that is slow or hangs delays no word of the verifier's.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from outrider.v1 import verifier_pb2 as pb

from edge_client.drafters.base import DrafterError
from edge_client.errors import SessionError, closed
from edge_client.link.inbox import Callback, Failed, Heard, LinkChanged, Message, PromptKnown, Reconnected
from edge_client.link.session_link import SessionLink
from edge_client.riding.commit_reader import CommitReader, Progress, Ride
from edge_client.riding.drafter_lease import DrafterLease
from edge_client.riding.local_decoding import LocalDecoding
from edge_client.riding.offline import UNREACHABLE, Consent, TakeOver, agreed_length, own_tokens
from edge_client.riding.riding_loop import RidingLoop
from edge_client.riding.shared_drafter import SharedDrafter
from edge_client.types import (
    LinkState,
    OfflinePart,
    Prompt,
    RequestMetrics,
    RequestOutput,
    StreamChunk,
    TokenLogprob,
)
from speculation.sampling import SamplingParams

FINISH_REASONS = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_CANCELLED: "abort",
}
CALL_DEADLINE_S = 10.0  # for one call into a drafter: later than this, the answer goes on without it
ALONE_DEADLINE_S = 60.0  # where there is nobody else who could answer
LOOK_S = 0.25  # how often the drafter is looked after while the verifier is silent


class AnswerRun:
    """Runs once, on a thread of its own. `put` hears chunks as they come; the last one is returned."""

    def __init__(
        self,
        prompt: Prompt,
        params: SamplingParams,
        seed: int,
        link: SessionLink,
        put: Callable[[StreamChunk], None],
        consent: Consent,
        drafter: SharedDrafter | None = None,
        before: RequestOutput | None = None,
    ) -> None:
        """consent: whether the device may go on alone, with the drafter's model. before: the answer to be checked, or
        to be gone on with."""
        self._prompt, self._params, self._seed, self._link = prompt, params, seed, link
        self._put, self._consent, self._drafter = put, consent, drafter
        self._tokens: list[int] = list(before.token_ids) if before is not None else []
        self._before, self._before_tokens = before, len(self._tokens)
        self._drafted: list[bool] = list(before.drafted) if before is not None else []
        # What that answer told of no token, the verifier tells again, with the token that makes it certain.
        self._told_before = before.held_text if before is not None else ""
        self._texts: list[str] = [before.committed_text.removesuffix(before.held_text)] if before is not None else []
        self._logprobs: list[TokenLogprob] = list((before.logprobs if before is not None else None) or ())
        self._state = LinkState.CONNECTING
        self._timer: threading.Timer | None = None
        self._cancelled = threading.Event()
        self._declined = False
        self._drafter_hangs = False
        self.ride = Ride()
        self._reader = CommitReader(self.ride, self._tokens)
        self.loop: RidingLoop | None = None  # where there is anything to draft

    @property
    def opened(self) -> pb.Opened | None:
        """What the verifier said when the session was opened."""
        return self._reader.opened

    def cancel(self) -> None:
        """End the answer; from any thread."""
        self._cancelled.set()
        if self.loop is not None:
            self.loop.stop(learn=True)
        self._link.cancel()

    def committed_length(self) -> int:
        """Position after what the answer goes on from; the session must be open."""
        assert self.opened is not None
        return self.opened.prompt_length + self._before_tokens

    @property
    def _model_info(self) -> pb.GetModelInfoResponse | None:
        return self.opened.model_info if self.opened is not None else None

    def run(self) -> StreamChunk:
        """Raises SessionError."""
        finished = None
        try:
            finished = self._follow()
        except TakeOver:
            return self._go_on_alone("the verifier could not be reached")
        except SessionError as error:
            if error.code not in UNREACHABLE or self._declined or not self._consent(self._wanted):
                error.so_far = self._so_far()
                raise
            return self._go_on_alone(str(error))
        finally:
            self.ride.total_ms = self.ride.elapsed_ms()
            self._stop_timer()
            if self.loop is not None:
                self.loop.stop(learn=finished is not None)
        output = self._output(finished, FINISH_REASONS.get(finished.reason, "error"))
        return StreamChunk(output=output, model_info=self._model_info)

    # -- while the verifier writes -------------------------------------------------------------------------------------

    def _follow(self) -> pb.Finished:
        """Tell what the verifier says until the answer is complete. Raises SessionError and TakeOver."""
        while True:
            message = self._next_message()
            if isinstance(message, Failed):
                raise message.error
            if isinstance(message, LinkChanged):
                self._link_changed(message.waiting)
            elif isinstance(message, Callback):
                message.run()
            elif isinstance(message, Reconnected):
                self._tell_loop(message)
            elif isinstance(message, PromptKnown):
                if self.opened is not None:
                    self._reader.opened = pb.Opened.FromString(
                        self.opened.SerializeToString()
                    )  # the other is the loop's
                    self._reader.opened.prompt_ids[:] = message.ids
                self._tell_loop(message)
            elif (finished := self._heard(message)) is not None:
                return finished

    def _heard(self, message: Heard) -> pb.Finished | None:
        response, loop = message.response, self.loop
        kind = response.WhichOneof("message")
        if kind == "finished":
            if response.finished.text:
                self._emit(Progress(response.finished.text))
            return response.finished
        if kind == "opened":
            self._reader.opened = self._reader.opened or response.opened
            self._tell_loop(message)
            if loop is not None and (self._drafter_hangs or not loop.reacts):
                loop.stop_waiting()  # this stream's verifier may not know
        elif kind == "commit":
            guessed = loop.guessed if loop is not None else {}
            self._tell_loop(message)  # at once: it may have drafts to send
            if (progress := self._reader.commit(response.commit, guessed)) is not None:
                self._emit(progress)
        return None

    def _tell_loop(self, message: Message) -> None:
        if self.loop is not None and not self._drafter_hangs:
            self.loop.inbox.put(message)

    def _next_message(self) -> Message:
        """Waits for a message, and looks after the drafter meanwhile."""
        while (loop := self.loop) is not None and not self._drafter_hangs:
            patience_s = loop.told_patience_ms / 1e3
            try:
                return self._link.inbox.get(timeout=min(LOOK_S, max(0.02, patience_s)) if patience_s else LOOK_S)
            except queue.Empty:
                self._look_after(loop)
        return self._link.inbox.get()

    def _look_after(self, loop: RidingLoop) -> None:
        if loop.busy_s > CALL_DEADLINE_S:
            self._drafter_hangs = True
            self.ride.notices.append(
                f"the drafter has not answered for {CALL_DEADLINE_S:.0f} s; the answer goes on as plain streaming"
            )
            loop.stop()
            loop.stop_waiting()
        elif loop.kept_waiting_ms > loop.told_patience_ms > 0:
            loop.stop_waiting()

    def _emit(self, progress: Progress) -> None:
        self._tokens.extend(progress.tokens)
        self._drafted.extend(progress.drafted)
        self._texts.append(progress.text)
        new = tuple(
            TokenLogprob(token, entry.logprob, dict(zip(entry.top_ids, entry.top_logprobs, strict=True)))
            for token, entry in zip(progress.tokens, progress.logprobs, strict=False)
        )
        self._logprobs.extend(new)
        self._state = LinkState.LIVE
        texts = tuple(self._news(text) for text in progress.texts)
        self._put(
            StreamChunk(
                "".join(texts) if texts else self._news(progress.text),
                tuple(progress.tokens),
                texts,
                tuple(progress.drafted),
                tuple(progress.corrected),
                new,
                model_info=self._model_info,
                own=tuple(progress.own),
            )
        )

    def _news(self, text: str) -> str:
        """Without what the answer told before that this one goes on from."""
        if not self._told_before:
            return text
        known = agreed_length(self._told_before, text)
        self._told_before = self._told_before[known:] if known == len(text) else ""
        return text[known:]

    # -- while nothing is heard ----------------------------------------------------------------------------------------

    def _link_changed(self, waiting: bool) -> None:
        self._stop_timer()
        state = LinkState.LIVE
        if waiting:
            state = LinkState.CONNECTING if self.opened is None else LinkState.WAITING
        self._state = state
        self._put(StreamChunk(link=state))
        if waiting:
            settings = self._link.channel.settings
            self._timer = threading.Timer(max(0.0, settings.offline_after_s - settings.waiting_s), self._remind)
            self._timer.daemon = True
            self._timer.start()

    def _remind(self) -> None:
        self._link.inbox.put(Callback(self._take_over))

    def _take_over(self) -> None:
        if self._state is LinkState.LIVE or self._declined or self._cancelled.is_set():
            return
        if not self._consent(lambda: self._link.waiting and self._wanted()):
            self._declined = True  # once is enough; the answer goes on when the network is back
        elif self._link.waiting:
            raise TakeOver

    def _wanted(self) -> bool:
        return not self._cancelled.is_set()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- the device's own words ----------------------------------------------------------------------------------------

    def _go_on_alone(self, reason: str) -> StreamChunk:
        """The rest of the answer by the drafter's model. Raises SessionError if there is none that can."""
        self._link.close()
        drafter = self._drafter
        assert drafter is not None  # or else nobody consents
        outcome: queue.SimpleQueue[StreamChunk | BaseException] = queue.SimpleQueue()
        writing = threading.Thread(
            target=self._write_alone, args=(drafter, outcome.put), name="outrider-alone", daemon=True
        )
        writing.start()
        result: StreamChunk | BaseException | None = None
        while result is None:
            try:
                result = outcome.get(timeout=LOOK_S)
            except queue.Empty:
                if drafter.closed.is_set():
                    result = closed()
                elif drafter.busy_s > ALONE_DEADLINE_S:
                    result = DrafterError(f"its model has not answered for {ALONE_DEADLINE_S:.0f} s")
        if isinstance(result, StreamChunk):
            return result
        self._cancelled.set()  # whoever still writes need not go on
        failed = result
        if not isinstance(failed, SessionError):
            # Whatever a model does, people are to hear about the verifier, too.
            sentence = f"{reason}, and the device cannot answer alone: {result}"
            failed = SessionError("UNAVAILABLE", "NO_ANSWER_ALONE", sentence)
        failed.so_far = self._so_far()
        raise failed from (result if result is not failed else None)

    def _write_alone(self, drafter: SharedDrafter, tell: Callable[[StreamChunk | BaseException], None]) -> None:
        given_up = self._cancelled.is_set
        try:
            if self.loop is not None:  # which may be within a call into the drafter
                self.loop.stop()
                while not self.loop.ended.wait(LOOK_S):
                    if given_up():
                        raise DrafterError("nobody waits for it any more")
            with drafter.alone(given_up) as lease:
                tell(self._write(lease))  # before the model is given back, which may take its time
        except BaseException as error:  # on a thread of its own, where nothing but the drafter can have raised it
            tell(error)

    def _write(self, lease: DrafterLease) -> StreamChunk:
        opened, model = self.opened, lease.drafter
        shown = "".join(self._texts)
        with lease.calling():
            text = model.model_text()
            prompt, answer, of_log = own_tokens(self._prompt, opened, self._tokens, shown, model, text)
            solo = LocalDecoding(lease, text, self._params, self._seed, prompt, answer, shown, of_log)
        self._state = LinkState.OFFLINE
        self._put(StreamChunk(link=LinkState.OFFLINE, model_info=self._model_info))
        began_ms = self.ride.elapsed_ms()

        def emit(token: int, piece: str) -> None:
            if not self.ride.ttft_ms:
                self.ride.ttft_ms = self.ride.elapsed_ms()
            piece = self._news(piece)
            self._put(StreamChunk(piece, (token,), (piece,), (False,), (False,), link=LinkState.OFFLINE))

        reason = solo.run(emit, self._cancelled.is_set)
        if rest := solo.rest():
            self._put(StreamChunk(self._news(rest), link=LinkState.OFFLINE))
        ride = self.ride
        ride.total_ms = self.ride.elapsed_ms()
        ride.notices.append(f"the verifier could not be reached; {model.info.name} wrote on alone")
        ride.drafting_ms += ride.total_ms - began_ms
        target = opened.model_info.target_fingerprint if opened is not None else ""
        part = OfflinePart(solo.written + rest, tuple(solo.tokens), tuple(solo.texts), of_log, model.info.name, target)
        usage = pb.Usage(prompt_tokens=opened.prompt_length if opened is not None else len(prompt))
        output = self._output(pb.Finished(usage=usage), reason, part)
        return StreamChunk(output=output, link=LinkState.OFFLINE, model_info=self._model_info)

    def _so_far(self) -> RequestOutput | None:
        """What is left to whoever hears of the error."""
        if (opened := self.opened) is None:
            return self._before
        return self._output(pb.Finished(usage=pb.Usage(prompt_tokens=opened.prompt_length)), "error")

    # -- in the end ----------------------------------------------------------------------------------------------------

    def _output(self, finished: pb.Finished, reason: str, part: OfflinePart | None = None) -> RequestOutput:
        tokens = len(self._tokens) + (len(part.token_ids) if part is not None else 0)
        return RequestOutput(
            text="".join(self._texts) + (part.text if part is not None else ""),
            token_ids=tuple(self._tokens),
            drafted=tuple(self._drafted),
            finish_reason=reason,
            prompt_tokens=finished.usage.prompt_tokens,
            seed=self._seed,
            metrics=_metrics(self.ride, self._link, finished, tokens),
            logprobs=tuple(self._logprobs) if self._params.logprobs is not None else None,
            offline=part,
            cached_prompt_tokens=finished.usage.cached_prompt_tokens,
            target=self.opened.model_info.target_fingerprint if self.opened is not None else "",
            prompt_fingerprint=self.opened.prompt_fingerprint if self.opened is not None else 0,
            held_text=finished.text,
        )


def _metrics(ride: Ride, link: SessionLink, finished: pb.Finished, tokens: int) -> RequestMetrics:
    stats = finished.statistics
    return RequestMetrics(
        ttft_ms=ride.ttft_ms,
        total_ms=ride.total_ms,
        ms_per_token=(ride.total_ms - ride.ttft_ms) / max(1, tokens - 1),
        rtt_ms=link.rtt.median_ms,
        drafted_tokens=ride.drafted_tokens,
        verified_tokens=stats.verified_tokens,
        accepted_tokens=ride.accepted_tokens,
        acceptance=stats.accepted_tokens / stats.verified_tokens if stats.verified_tokens else None,
        target_forwards=stats.target_forwards,
        draft_messages=ride.draft_messages,
        commits=ride.commits,
        drafting_ms=ride.drafting_ms,
        uplink_bytes=link.uplink_bytes,
        downlink_bytes=link.downlink_bytes,
        reconnects=link.reconnects,
        notices=tuple(ride.notices),
        failures=link.failures,
        own_verified_tokens=stats.own_verified_tokens,
        own_accepted_tokens=stats.own_accepted_tokens,
    )
