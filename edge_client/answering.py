"""One answer from its first word to its last: the ride, the link's state, and the device's own words if need be."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from outrider.v1 import verifier_pb2 as pb

from edge_client.drafters.base import DrafterError
from edge_client.errors import SessionError
from edge_client.inbox import Errand
from edge_client.link import SessionLink
from edge_client.offline import UNREACHABLE, Consent, TakeOver, own_tokens
from edge_client.seat import DrafterSeat
from edge_client.session import Progress, RidingLoop
from edge_client.solo import Solo
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
# The seat of the drafter's own model, for one answer alone; None if there is none or the caller gave up.
Alone = Callable[[Callable[[], bool]], AbstractContextManager[DrafterSeat | None]]


class Answering:
    """Runs once, on a thread of its own. `put` hears chunks as they come; the last one is returned."""

    def __init__(
        self,
        prompt: Prompt,
        params: SamplingParams,
        seed: int,
        link: SessionLink,
        put: Callable[[StreamChunk], None],
        consent: Consent,
        alone: Alone,
        before: RequestOutput | None = None,
    ) -> None:
        """consent: whether the device may go on alone; `alone` gives it the model. before: the answer to be checked, or
        to be gone on with."""
        self._prompt, self._params, self._seed, self._link = prompt, params, seed, link
        self._put, self._consent, self._alone = put, consent, alone
        self._tokens: list[int] = list(before.token_ids) if before is not None else []
        self._before, self._before_tokens = before, len(self._tokens)
        self._drafted: list[bool] = list(before.drafted) if before is not None else []
        self._texts: list[str] = [before.committed_text] if before is not None else []
        self._logprobs: list[TokenLogprob] = list((before.logprobs if before is not None else None) or ())
        self._state = LinkState.CONNECTING
        self._timer: threading.Timer | None = None
        self._cancelled = threading.Event()
        self._declined = False
        self.loop: RidingLoop

    def cancel(self) -> None:
        """End the answer; from any thread."""
        self._cancelled.set()
        self.loop.cancel()

    def committed_length(self) -> int:
        """Position after what the answer goes on from; the session must be open."""
        assert self.loop.opened is not None
        return self.loop.opened.prompt_length + self._before_tokens

    def run(self) -> StreamChunk:
        """Raises SessionError."""
        try:
            finished = self.loop.run(self._emit)
        except TakeOver:
            return self._go_on_alone("the verifier could not be reached")
        except SessionError as error:
            if error.code not in UNREACHABLE or self._declined or not self._consent(self._wanted):
                error.so_far = self._so_far()
                raise
            return self._go_on_alone(str(error))
        finally:
            self._stop_timer()
        return StreamChunk(output=self._output(finished, FINISH_REASONS.get(finished.reason, "error")))

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
        self._put(
            StreamChunk(
                progress.text,
                tuple(progress.tokens),
                tuple(progress.texts),
                tuple(progress.drafted),
                tuple(progress.corrected),
                new,
            )
        )

    # -- while nothing is heard ----------------------------------------------------------------------------------------

    def link_changed(self, waiting: bool) -> None:
        """On the session's thread. Raises TakeOver."""
        self._stop_timer()
        if not waiting:
            state = LinkState.LIVE
        else:
            state = LinkState.CONNECTING if self.loop.opened is None else LinkState.WAITING
        self._state = state
        self._put(StreamChunk(link=state))
        if waiting:
            settings = self._link.channel.settings
            self._timer = threading.Timer(max(0.0, settings.offline_after_s - settings.waiting_s), self._remind)
            self._timer.daemon = True
            self._timer.start()

    def _remind(self) -> None:
        self._link.inbox.put(Errand(self._take_over))

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
        with self._alone(self._cancelled.is_set) as seat:
            try:
                if seat is None:
                    raise DrafterError("this device has no model that could answer")
                return self._write(seat)
            except Exception as error:  # whatever a model does, people are to hear about the verifier, too
                sentence = f"{reason}, and the device cannot answer alone: {error}"
                failed = SessionError("UNAVAILABLE", "NO_ANSWER_ALONE", sentence)
                failed.so_far = self._so_far()
                raise failed from error

    def _write(self, seat: DrafterSeat) -> StreamChunk:
        opened, model = self.loop.opened, seat.drafter
        text = model.model_text()
        shown = "".join(self._texts)
        prompt, answer, of_log = own_tokens(self._prompt, opened, self._tokens, shown, model, text)
        solo = Solo(seat, text, self._params, self._seed, prompt, answer, shown, of_log)
        self._state = LinkState.OFFLINE
        self._put(StreamChunk(link=LinkState.OFFLINE))
        began_ms = self.loop.elapsed_ms()

        def emit(token: int, piece: str) -> None:
            if not self.loop.ride.ttft_ms:
                self.loop.ride.ttft_ms = self.loop.elapsed_ms()
            self._put(StreamChunk(piece, (token,), (piece,), (False,), (False,), link=LinkState.OFFLINE))

        reason = solo.run(emit, self._cancelled.is_set)
        if rest := solo.rest():
            self._put(StreamChunk(rest, link=LinkState.OFFLINE))
        ride = self.loop.ride
        ride.total_ms = self.loop.elapsed_ms()
        ride.notices.append(f"the verifier could not be reached; {model.info.name} wrote on alone")
        ride.drafting_ms += ride.total_ms - began_ms
        target = opened.model_info.target_fingerprint if opened is not None else ""
        part = OfflinePart(solo.written + rest, tuple(solo.tokens), tuple(solo.texts), of_log, model.info.name, target)
        usage = pb.Usage(prompt_tokens=opened.prompt_length if opened is not None else len(prompt))
        return StreamChunk(output=self._output(pb.Finished(usage=usage), reason, part), link=LinkState.OFFLINE)

    def _so_far(self) -> RequestOutput | None:
        """What is left to whoever hears of the error."""
        if (opened := self.loop.opened) is None:
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
            metrics=_metrics(self.loop, self._link, finished, tokens),
            logprobs=tuple(self._logprobs) if self._params.logprobs is not None else None,
            offline=part,
            cached_prompt_tokens=finished.usage.cached_prompt_tokens,
            target=self.loop.opened.model_info.target_fingerprint if self.loop.opened is not None else "",
        )


def _metrics(loop: RidingLoop, link: SessionLink, finished: pb.Finished, tokens: int) -> RequestMetrics:
    ride, stats = loop.ride, finished.statistics
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
    )
