"""The scheduler: at each step, every session that can advance advances, in one forward.

No session waits for another's device: one that is due steps with whatever on-path guesses have arrived, or with none.
When a session is due is its own business (`sessions`, `patience`), who gets how much of a step is that of `budget`. The
engine runs on a thread of its own; everything else here runs on the event loop between two steps, so sessions need no
locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from grpc import StatusCode

from cloud_verifier.engines.base import Block, Choices, EngineDead, EngineFull, TargetEngine
from cloud_verifier.errors import VerifierError
from cloud_verifier.log_redaction import log_failure
from cloud_verifier.scheduling.counters import Counters, LatestStep
from cloud_verifier.scheduling.engine_thread import EngineThread
from cloud_verifier.scheduling.load import Load
from cloud_verifier.scheduling.own_guesses import OwnGuesses
from cloud_verifier.scheduling.position_cost import PositionCost
from cloud_verifier.scheduling.preemption import PRIORITY_S, Preemption
from cloud_verifier.scheduling.session import LastStep, Session
from cloud_verifier.scheduling.token_budget import Want, allocate
from speculation.verifier_tree import Picked

log = logging.getLogger(__name__)

NO_GUESSES = Picked(())
RETRY_S = 0.05  # a session that finds no room in the engine looks again, even if nothing has happened


@dataclass(frozen=True)
class SchedulerSettings:
    """Limits, in tokens.

    step_tokens: positions in one forward that go on with logs and check guesses; best as many as the engine evaluates
    in about the time of few. chunk_tokens: positions more that read prompts, of all sessions together.
    unread_tokens: how far a session writes on that nobody reads. step_timeout_s: a step that takes longer, by half a
    second for each of its positions, is taken for one that never ends.
    """

    step_tokens: int = 512
    chunk_tokens: int = 256
    unread_tokens: int = 128
    step_timeout_s: float = 300.0


@dataclass(frozen=True)
class _Planned:
    """A session's part in a step. due_s: since when it might have stepped. trimmed: guesses that were left out."""

    session: Session
    block: Block
    guesses: Picked
    trimmed: int
    due_s: float


class Scheduler:
    """Owns the engine and the running sessions."""

    def __init__(
        self,
        engine: TargetEngine,
        settings: SchedulerSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self.settings = settings or SchedulerSettings()
        self._clock = clock
        self.counters = Counters()
        self._seats = Preemption(engine)
        self._load = Load()
        self._cost = PositionCost(self.settings.step_tokens)
        self._own = OwnGuesses(self._cost)
        self._sessions: list[Session] = []
        self._ended: list[Session] = []
        self.on_room: Callable[[], None] | None = None
        self._wake = asyncio.Event()
        self._next_due_s: float | None = None
        self._thread = EngineThread(self.settings.step_timeout_s)

    @property
    def running(self) -> int:
        """Sessions that hold or will hold a sequence of the engine."""
        return len(self._sessions)

    @property
    def room(self) -> int:
        """Sessions that would find room in the engine. `on_room` is called when it may have grown."""
        return self.engine.info.max_sequences - self.running - len(self._ended)

    @property
    def trouble(self) -> str:
        """Why the present step is taken for one that never ends, in a sentence; empty if it is not."""
        return self._thread.trouble

    def add(self, session: Session) -> None:
        """Let a session take part from the next step on. Check `room` first."""
        self._sessions.append(session)
        self.wake()

    def remove(self, session: Session) -> None:
        """Take a session out; its sequence is freed before the next step. No error if it is out already."""
        if session in self._sessions:
            self._sessions.remove(session)
            self._ended.append(session)
        self.wake()

    def wake(self) -> None:
        """A message arrived that may let a session advance."""
        self._wake.set()

    async def run(self) -> None:
        """Step for ever; cancel to stop.

        What an engine raises of one session ends that session. Raises EngineDead, and whatever else would have ended
        the steps of all: whoever runs this must then give up the sessions.
        """
        try:
            while True:
                self._wake.clear()
                self._free_ended()
                plan = self._plan()
                if not plan:
                    await self._sleep()
                    continue
                began = self._clock()
                # Streams read and write meanwhile: the engine does not stand still for that.
                positions = sum(len(planned.block.tokens) for planned in plan)
                results = await self._thread.run(partial(self._step, plan), positions)
                self._apply(plan, results, began, self._clock())
        finally:
            if self._thread.end():
                self._ended += self._sessions
                self._free_ended()  # the engine may outlive its scheduler

    async def _sleep(self) -> None:
        """Until a message comes or, by what `_plan` has just seen, somebody is due."""
        timeout_s = None
        if self._next_due_s is not None:
            timeout_s = max(RETRY_S if self.counters.sessions_waiting else 0.0, self._next_due_s - self._clock())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()

    def _free_ended(self) -> None:
        for session in self._ended:
            sequence, session.sequence = session.sequence, None
            if sequence is not None:
                try:
                    self.engine.close(sequence)
                except Exception as error:  # a place is lost; the other sessions must go on
                    log_failure(log, "the engine could not free a sequence", error)
        if self._ended:
            self._ended.clear()
            if self.on_room is not None:
                self.on_room()

    def _plan(self) -> list[_Planned]:
        """Everybody who is due, longest waiting first, as far as the token budget and the engine's memory reach."""
        now, settings = self._clock(), self.settings
        unread_tokens = settings.unread_tokens
        dues = [(at, s) for s in self._sessions if (at := s.due_s(unread_tokens)) is not None]
        self._next_due_s = min((at for at, _ in dues), default=None)
        due = [(at, s) for at, s in dues if at <= now]
        due.sort(key=lambda pair: pair[0] - pair[1].priority * PRIORITY_S)
        # Preemption before positions: those who find no room must not take the turn of those whose going on makes some.
        working = {session for _, session in due}
        seated: dict[Session, float] = {}
        for due_s, session in due:
            if len(seated) == settings.step_tokens:
                break
            try:
                if self._seats.take(session, self._sessions, seated, working, now):
                    seated[session] = due_s
            except Exception as error:  # EngineFull, against what `info` promises, or worse
                self._fail(session, error)
        self.counters.sessions_waiting = len(due) - len(seated)
        wants = [Want(s.line.length - s.cached, s.guesses, s.survivals) for s in seated]
        shares = allocate(wants, settings.step_tokens, settings.chunk_tokens)
        plan = []
        checked = sum(1 + max(0, share - want.pending) for want, share in zip(wants, shares, strict=True))
        self._own.begin(len(seated), settings.step_tokens - checked)
        for (session, due_s), positions in zip(seated.items(), shares, strict=True):
            try:
                plan.append(self._planned(session, positions, due_s))
            except Exception as error:
                self._fail(session, error)
        return plan

    def _planned(self, session: Session, positions: int, due_s: float) -> _Planned:
        assert session.sequence is not None
        pending = session.line.log[session.cached :]
        guesses = NO_GUESSES
        choices = trimmed = 0
        if (room := positions - len(pending)) >= 0:
            wanted = session.guesses
            guesses = self._reserved(session, len(pending), room if wanted else 0)
            checked = len(guesses.nodes) - len(guesses.own)
            choices, trimmed = len(guesses.nodes) + 1, max(0, wanted - (room if checked else 0))
        block = Block(
            session.sequence, [*pending[:positions], *guesses.tokens], choices, session.sampler, guesses.parents
        )
        return _Planned(session, block, guesses, trimmed, due_s)

    def _reserved(self, session: Session, pending: int, room: int) -> Picked:
        """The guesses of a session that a step has room for, and the engine too: if not for all, then without the
        verifier's own, then for a line."""
        assert session.sequence is not None
        for trees in (True, False) if room and self.engine.info.trees and session.line.forked else (False,):
            picked = session.pick(room, trees=trees) if room else NO_GUESSES
            for guesses in (self._own.after(session, picked), picked):
                if not guesses.nodes:
                    continue
                try:
                    self.engine.reserve(session.sequence, pending + len(guesses.nodes), guesses.parents)
                except EngineFull:  # there is room for the log itself; nobody's is taken for guesses
                    continue
                return guesses
        return NO_GUESSES

    def _step(self, plan: list[_Planned]) -> list[Choices | Exception]:
        """One forward for all. If it fails, each session alone, so that one session's trouble stays its own."""
        try:
            results = list(self.engine.step([p.block for p in plan]))
            if len(results) != len(plan):
                raise RuntimeError(f"{len(results)} results for {len(plan)} blocks")
            return [*results]
        except EngineDead:
            raise
        except Exception as error:
            if len(plan) == 1:
                return [error]
            log_failure(log, f"a step of {len(plan)} sessions failed; stepping each alone", error, logging.WARNING)
            return [result for p in plan for result in self._step([p])]

    def _apply(self, plan: list[_Planned], results: list[Choices | Exception], began: float, ended: float) -> None:
        forward_us = round((ended - began) * 1e6)
        used = sum(len(p.block.tokens) for p in plan) / self.settings.step_tokens
        self._load.stepped(used, began * 1e3, ended * 1e3)
        self._count(plan, ended - began)
        for planned, result in zip(plan, results, strict=True):
            session = planned.session
            try:
                if isinstance(result, Exception):
                    raise result
                self._advance(planned, result, forward_us, full=used >= 1)
            except Exception as error:  # of the engine, or of turning its choices into text: this session's own trouble
                self._fail(session, error)
            session.statistics.waited_us += round((planned.due_s - session.ready_since_s) * 1e6)
            session.last_step = LastStep(round((began - planned.due_s) * 1e6), forward_us, len(plan))
            session.ready_since_s = session.work_since_s = ended
            if session.over:
                self.remove(session)
            session.changed.set()

    def _count(self, plan: list[_Planned], step_s: float) -> None:
        figures, positions = self.counters, 0
        for planned in plan:
            own, tokens = len(planned.guesses.own), len(planned.block.tokens)
            guesses = len(planned.guesses.nodes)
            if planned.session.reading:
                figures.prompt_positions += tokens - guesses
            else:
                figures.pending_positions += tokens - guesses
            figures.draft_positions += guesses - own
            figures.own_positions += own
            figures.trimmed_draft_tokens += planned.trimmed
            positions += tokens
        figures.steps += 1
        figures.step_s += step_s
        figures.sessions_in_step = len(plan)
        figures.preemptions = self._seats.preemptions
        memory = self.engine.memory
        figures.pages_used, figures.pages_cached, figures.pages_free = memory.used, memory.cached, memory.free
        figures.prefix_query_tokens, figures.prefix_hit_tokens = memory.prefix_query_tokens, memory.prefix_hit_tokens
        self._cost.stepped(positions, step_s)
        figures.latest = LatestStep(figures.steps, step_s, len(plan), positions)

    def _fail(self, session: Session, error: Exception) -> None:
        """The engine failed on this session, which ends. Raises EngineDead if it failed for all of them."""
        if isinstance(error, EngineDead):
            raise error
        log_failure(log, f"session {session.session_id[:8]} failed in the engine", error)
        session.error = VerifierError(
            StatusCode.INTERNAL,
            "ENGINE_FAILED",
            "the engine failed on this session's input; open it again with continue_from to go on",
        )
        self.remove(session)
        session.changed.set()

    def _advance(self, planned: _Planned, choices: Choices, forward_us: int, *, full: bool) -> None:
        session, sequence = planned.session, planned.block.sequence
        guesses = len(planned.guesses.nodes)
        session.cached += len(planned.block.tokens) - guesses
        session.patience.load = self._load.share
        if not planned.block.choices:
            return
        if not session.reading or session.drafted:
            session.statistics.forward_us += forward_us
        session.statistics.trimmed_tokens += planned.trimmed
        drafted, stats = guesses - len(planned.guesses.own), session.statistics
        session.draft_budget.stepped(drafted, planned.trimmed, full=full)
        accepted, own_accepted = stats.accepted_tokens, stats.own_accepted_tokens
        path = session.take(planned.guesses, choices)
        self.counters.judged(drafted, stats.accepted_tokens - accepted)
        self.counters.own_accepted_tokens += stats.own_accepted_tokens - own_accepted
        self.engine.keep(sequence, session.cached, path)
        session.cached += len(path)
