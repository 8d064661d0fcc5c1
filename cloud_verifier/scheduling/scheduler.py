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
from typing import Any

from grpc import StatusCode

from cloud_verifier.engines.base import EngineDead, TargetEngine
from cloud_verifier.engines.self_scheduling import Engine
from cloud_verifier.errors import VerifierError
from cloud_verifier.log_redaction import log_failure
from cloud_verifier.scheduling.block_stepping import BlockStepping
from cloud_verifier.scheduling.counters import Counters, LatestStep
from cloud_verifier.scheduling.engine_thread import EngineThread
from cloud_verifier.scheduling.guess_thread import GuessThread
from cloud_verifier.scheduling.load import Load
from cloud_verifier.scheduling.own_guesses import OwnGuesses
from cloud_verifier.scheduling.position_cost import PositionCost
from cloud_verifier.scheduling.preemption import PRIORITY_S, Company
from cloud_verifier.scheduling.session import LastStep, Session
from cloud_verifier.scheduling.stepping import Planned, Stepping
from cloud_verifier.scheduling.token_budget import allocate
from cloud_verifier.scheduling.turn_stepping import TurnStepping

log = logging.getLogger(__name__)

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


class Scheduler:
    """Owns the engine and the running sessions."""

    def __init__(
        self,
        engine: Engine,
        settings: SchedulerSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self.settings = settings or SchedulerSettings()
        self._clock = clock
        self.counters = Counters()
        self._load = Load()
        self._cost = PositionCost(self.settings.step_tokens)
        self._own = OwnGuesses(self._cost)
        self._stepping: Stepping[Any, Any] = (
            BlockStepping(engine, self._own) if isinstance(engine, TargetEngine) else TurnStepping(engine, self._own)
        )
        self._sessions: list[Session] = []
        self._ended: list[Session] = []
        self.on_room: Callable[[], None] | None = None
        self._wake = asyncio.Event()
        self._next_due_s: float | None = None
        self._thread = EngineThread(self.settings.step_timeout_s)
        self._guesses = GuessThread()

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
                await self._draw_ahead()
                plan = self._plan()
                if not plan:
                    await self._sleep()
                    continue
                began = self._clock()
                # Streams read and write meanwhile: the engine does not stand still for that.
                positions = sum(planned.positions for planned in plan)
                results = await self._thread.run(partial(self._stepping.step, plan), positions)
                self._apply(plan, results, began, self._clock())
        finally:
            self._guesses.end()
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
            if session.guesser is not None:
                self._guesses.close(session.guesser)
            try:
                if sequence is not None:
                    self.engine.close(sequence)
            except Exception as error:  # a place is lost; the other sessions must go on
                log_failure(log, "the engine could not free a sequence", error)
        if self._ended:
            self._ended.clear()
            if self.on_room is not None:
                self.on_room()

    async def _draw_ahead(self) -> None:
        """Own guesses that take a model, for those who are due."""
        if self.settings.step_tokens <= len(self._sessions) or self._guesses.busy:
            return
        if (draw := self._own.ahead([session for _, session in self._due(self._clock())])) is not None:
            await self._guesses.draw(draw, self._cost.step_s)
            self._free_ended()

    def _due(self, now: float) -> list[tuple[float, Session]]:
        """Who may take part in a step, and since when."""
        dues = [(at, s) for s in self._sessions if (at := s.due_s(self.settings.unread_tokens)) is not None]
        self._next_due_s = min((at for at, _ in dues), default=None)
        return [(at, s) for at, s in dues if at <= now]

    def _plan(self) -> list[Planned[Any]]:
        """Everybody who is due, longest waiting first, as far as the token budget and the engine's memory reach."""
        now, settings = self._clock(), self.settings
        due = self._due(now)
        due.sort(key=lambda pair: pair[0] - pair[1].priority * PRIORITY_S)
        # Preemption before positions: those who find no room must not take the turn of those whose going on makes some.
        seated: dict[Session, float] = {}
        company = Company(self._sessions, seated, {session for _, session in due}, now)
        for due_s, session in due:
            if len(seated) == settings.step_tokens:
                break
            try:
                if self._stepping.seat(session, company):
                    seated[session] = due_s
            except Exception as error:  # EngineFull, against what `info` promises, or worse
                self._fail(session, error)
        self.counters.sessions_waiting = len(due) - len(seated)
        wants = [self._stepping.want(session) for session in seated]
        shares = allocate(wants, settings.step_tokens, settings.chunk_tokens)
        plan = []
        checked = sum(1 + max(0, share - want.pending) for want, share in zip(wants, shares, strict=True))
        self._own.begin(len(seated), settings.step_tokens - checked)
        for (session, due_s), positions in zip(seated.items(), shares, strict=True):
            try:
                plan.append(self._stepping.plan(session, positions, due_s))
            except Exception as error:
                self._fail(session, error)
        return plan

    def _apply(self, plan: list[Planned[Any]], results: list[Any], began: float, ended: float) -> None:
        forward_us = round((ended - began) * 1e6)
        used = self._count(plan, results, ended - began) / self.settings.step_tokens
        self._load.stepped(used, began * 1e3, ended * 1e3)
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

    def _count(self, plan: list[Planned[Any]], results: list[Any], step_s: float) -> int:
        """Positions that the step evaluated."""
        figures, positions = self.counters, 0
        for planned, result in zip(plan, results, strict=True):
            evaluated = self._stepping.evaluated(planned, result)
            if planned.session.reading:
                figures.prompt_positions += evaluated.log
            else:
                figures.pending_positions += evaluated.log
            figures.draft_positions += evaluated.guesses
            figures.own_positions += evaluated.own
            figures.trimmed_draft_tokens += planned.trimmed
            positions += sum(evaluated)
        figures.steps += 1
        figures.step_s += step_s
        figures.sessions_in_step = len(plan)
        figures.preemptions = self._stepping.preemptions
        memory = self.engine.memory
        figures.pages_used, figures.pages_cached, figures.pages_free = memory.used, memory.cached, memory.free
        figures.prefix_query_tokens, figures.prefix_hit_tokens = memory.prefix_query_tokens, memory.prefix_hit_tokens
        self._cost.stepped(positions, step_s)
        figures.latest = LatestStep(figures.steps, step_s, len(plan), positions)
        return positions

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

    def _advance(self, planned: Planned[Any], result: Any, forward_us: int, *, full: bool) -> None:
        session, stats = planned.session, planned.session.statistics
        session.patience.load = self._load.share
        begun = session.line.length > session.prompt_length
        accepted, own_accepted = stats.accepted_tokens, stats.own_accepted_tokens
        checked = self._stepping.apply(planned, result)
        if checked is None:
            return
        if begun:
            stats.forward_us += forward_us
        stats.trimmed_tokens += planned.trimmed
        session.draft_budget.stepped(checked, planned.trimmed, full=full)
        self.counters.judged(checked, stats.accepted_tokens - accepted)
        self.counters.own_accepted_tokens += stats.own_accepted_tokens - own_accepted
