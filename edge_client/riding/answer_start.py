"""How an answer starts: who drafts, at which pace, what the verifier is asked, and the threads that do it."""

from __future__ import annotations

import functools
import secrets
import threading
import time
from collections.abc import Callable

from edge_client.link.channel import Channel
from edge_client.link.inbox import Callback
from edge_client.link.open_message import open_message
from edge_client.link.session_link import SessionLink
from edge_client.riding.answer import AnswerRun
from edge_client.riding.drafter_lease import DrafterLease
from edge_client.riding.offline import Ask, Consent, ReplayDrafter
from edge_client.riding.paces import Paces
from edge_client.riding.riding_loop import RidingLoop
from edge_client.riding.shared_drafter import SharedDrafter
from edge_client.riding.vocabulary_matching import VocabularyMatching
from edge_client.types import OfflineAnswers, Prompt, RequestOutput, RideSettings, StreamChunk
from speculation.pace.base import Pace, Streaming
from speculation.pace.observed import Observed
from speculation.sampling import SamplingParams

DIARY_TIMEOUT_S = 3.0  # how long the last words wait for a diary to be complete,
DIARY_CALL_S = 0.1  # and for a call into the drafter, which may never come back
Put = Callable[[StreamChunk | BaseException], None]


class AnswerStarter:
    """Starts the answers of one client."""

    def __init__(
        self,
        channel: Channel,
        paces: Paces,
        drafter: SharedDrafter | None = None,
        matching: VocabularyMatching | None = None,
        *,
        model: str = "",
        priority: int = 0,
        offline_answers: OfflineAnswers = OfflineAnswers.NEVER,
        ask_offline: Ask | None = None,
    ) -> None:
        """model, offline_answers: of answers that say nothing else. Raises ValueError if somebody is to be asked and
        there is nobody."""
        self._channel, self._paces, self._drafter, self._matching = channel, paces, drafter, matching
        self._model, self._priority = model, priority
        self._offline = Consent(offline_answers, ask_offline)

    def start(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        seed: int | None,
        put: Put,
        settings: RideSettings | None = None,
        before: RequestOutput | None = None,
    ) -> Callable[[], None]:
        """Start a session on a thread of its own; returns what cancels it. before: the answer to be checked, if it has
        a part of the device's own, or to be gone on with.

        Raises SessionError if the client is closed, ValueError for an unusable prompt, and RuntimeError if no thread
        can be started.
        """
        params, settings = params or SamplingParams(), settings or RideSettings()
        seed = secrets.randbits(64) if seed is None else seed
        consent = self._consent(settings.offline_answers)
        drafter = self._drafter if settings.drafts else None
        who = object()
        lease = drafter.lease if drafter is not None and drafter.queue.take(who) else None
        link: SessionLink | None = None
        loop: RidingLoop | None = None
        try:
            part = before.offline if before is not None else None
            drafts = lease is not None or (drafter is not None and drafter.queue.free_soon)
            pace = self._pace_of(settings, drafts=drafts, own_words=part is not None)
            request = open_message(
                prompt,
                params,
                seed,
                pace,
                model=settings.model or self._model,
                priority=self._priority,
                vocabulary=drafter.lease.drafter.info.vocabulary_fingerprint if drafter is not None else None,
            )
            target = ""
            if before is not None:
                request.continue_from.extend(before.token_ids)
                request.prompt_fingerprint = before.prompt_fingerprint
                target = before.target if part is None else part.target
            link = SessionLink(self._channel, request, target)
            answering = AnswerRun(prompt, params, seed, link, put, consent, self._drafter, before)
            drafting = lease
            if lease is not None and part is not None and part.of_log:
                drafting = DrafterLease(ReplayDrafter(part, answering.committed_length))
            if drafter is not None or not isinstance(pace, Streaming):
                match = self._matching.ask if self._matching else None
                loop = answering.loop = RidingLoop(
                    link, drafting, pace, params, seed, match, ride=answering.ride, answered=request.continue_from
                )
                if drafter is not None and lease is None and part is None:
                    # Before the loop runs, for when it ends it leaves the queue.
                    own_pace = drafts or self._paces.same_without_drafter
                    offer = functools.partial(self._offer, loop, drafter.lease, settings, own_pace=own_pace)
                    drafter.queue.ask(who, offer)
                loop.start(functools.partial(self._leave, who))
            self._follow(answering, link, put, who, keeps_diary=settings.diary is not None)
        except BaseException:
            if loop is not None and loop.started:
                loop.stop()  # and leaves the drafter
            else:
                self._leave(who)
            if link is not None:
                link.close()
            raise
        return answering.cancel

    def _follow(
        self, answering: AnswerRun, link: SessionLink, put: Put, who: object, *, keeps_diary: bool = False
    ) -> None:
        """Follow the answer on a thread of its own. keeps_diary: it is to be complete when the answer is."""

        def follow() -> None:
            last: StreamChunk | BaseException
            try:
                last = answering.run()
            except BaseException as error:
                last = error
            link.close()
            # The drafter may be within a call, which nobody waits for; whoever asks next is offered it after.
            if self._drafter is not None:
                self._drafter.queue.leaving(who)
            if keeps_diary and answering.loop is not None:
                _complete_diary(answering.loop)
            put(last)

        threading.Thread(target=follow, name="outrider-ride", daemon=True).start()

    def _leave(self, who: object) -> None:
        if self._drafter is not None:
            self._drafter.queue.leave(who)

    def _pace_of(self, settings: RideSettings, *, drafts: bool, own_words: bool = False) -> Pace:
        """own_words: what drafts is what the device wrote alone."""
        if drafts:
            pace = self._paces.make(settings.model or self._model, own_words)
        else:
            pace = self._paces.without_drafter() if settings.drafts else Streaming()
        return Observed(pace, settings.diary) if settings.diary is not None else pace

    def _consent(self, answers: OfflineAnswers | None) -> Consent:
        """Raises ValueError if somebody is to be asked and there is nobody."""
        can = self._drafter is not None and self._drafter.can_answer_alone
        return Consent((answers or self._offline.answers) if can else OfflineAnswers.NEVER, self._offline.ask)

    def _offer(self, loop: RidingLoop, lease: DrafterLease, settings: RideSettings, *, own_pace: bool) -> None:
        """Tell a session that began without the drafter that it has it now."""
        pace = None if own_pace else self._pace_of(settings, drafts=True)
        loop.inbox.put(Callback(lambda: loop.attach_drafter(lease, pace)))


def _complete_diary(loop: RidingLoop) -> None:
    """Wait until the loop, which was told to stop, has written the last of it; not for a drafter that is slow."""
    until_s = time.monotonic() + DIARY_TIMEOUT_S
    while not loop.ended.wait(0.01) and loop.busy_s < DIARY_CALL_S and time.monotonic() < until_s:
        pass
