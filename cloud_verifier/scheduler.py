"""The scheduler: at each step, every session that can advance advances, in one forward.

It never waits for a device: a session steps with whatever on-path guesses have arrived, or with none. The engine runs
on a thread of its own; everything else here runs on the event loop between two steps, so sessions need no locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from grpc import StatusCode

from cloud_verifier.engines.base import Block, Choices, TargetEngine
from cloud_verifier.errors import VerifierError
from cloud_verifier.sessions import LastStep, Session

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SchedulerSettings:
    """Limits, in tokens.

    step_tokens: in one forward. chunk_tokens: of one session's prompt in one forward. detached_tokens: how far a
    session without a stream writes on.
    """

    step_tokens: int = 512
    chunk_tokens: int = 256
    detached_tokens: int = 128


@dataclass(frozen=True)
class _Planned:
    session: Session
    block: Block
    guesses: list[int]


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
        self._sessions: list[Session] = []
        self._ended: list[Session] = []
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    @property
    def running(self) -> int:
        """Sessions that hold or will hold a sequence of the engine."""
        return len(self._sessions)

    @property
    def full(self) -> bool:
        """Whether another session would not find room in the engine."""
        return self.running + len(self._ended) >= self.engine.info.max_sequences

    def add(self, session: Session) -> None:
        """Let a session take part from the next step on. Check `full` first."""
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
        """Step for ever; cancel to stop."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._wake.clear()
                self._free_ended()
                plan = self._plan()
                if not plan:
                    await self._sleep()
                    continue
                began = self._clock()
                results = await loop.run_in_executor(self._thread, self._step, plan)
                self._apply(plan, results, began, self._clock())
                await asyncio.sleep(0)  # let streams read and write between two steps
        finally:
            self._thread.shutdown(wait=True)
            self._ended += self._sessions
            self._free_ended()  # the engine may outlive its scheduler

    async def _sleep(self) -> None:
        now = self._clock()
        dues = [due for s in self._sessions if (due := s.due_s(self.settings.detached_tokens)) is not None]
        timeout = max(0.0, min(dues) - now) if dues else None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), timeout)

    def _free_ended(self) -> None:
        for session in self._ended:
            sequence, session.sequence = session.sequence, None
            if sequence is not None:
                try:
                    self.engine.close(sequence)
                except Exception:  # a place is lost; the other sessions must go on
                    log.exception("the engine could not free a sequence")
        self._ended.clear()

    def _plan(self) -> list[_Planned]:
        """Sessions that write come first, longest waiting first; prompts share what is left of the token budget."""
        now = self._clock()
        ready = [
            s for s in self._sessions if (due := s.due_s(self.settings.detached_tokens)) is not None and due <= now
        ]
        ready.sort(key=lambda s: (s.line.length - s.cached > 1, s.ready_since_s))
        room = self.settings.step_tokens
        plan: list[_Planned] = []
        for session in ready:
            if room <= 0:
                break
            if session.sequence is None:
                try:
                    session.sequence = self.engine.open()
                except Exception as error:  # EngineFull, against what `info` promises, or worse
                    self._fail(session, error)
                    continue
            planned = self._block(session, room)
            room -= len(planned.block.tokens)
            plan.append(planned)
        return plan

    def _block(self, session: Session, room: int) -> _Planned:
        assert session.sequence is not None
        log_tokens = session.line.log
        pending = log_tokens[session.cached :]
        chunk = pending[: min(room, self.settings.chunk_tokens)]
        guesses: list[int] = []
        choices = 0
        if len(chunk) == len(pending):
            guesses = session.guesses()[: room - len(chunk)]
            choices = len(guesses) + 1
        history = log_tokens[: session.cached] if session.sampler.params.needs_history else ()
        block = Block(session.sequence, [*chunk, *guesses], choices, session.sampler, history)
        return _Planned(session, block, guesses)

    def _step(self, plan: list[_Planned]) -> list[Choices | Exception]:
        """One forward for all. If it fails, each session alone, so that one session's trouble stays its own."""
        try:
            results = list(self.engine.step([p.block for p in plan]))
            if len(results) != len(plan):
                raise RuntimeError(f"{len(results)} results for {len(plan)} blocks")
            return [*results]
        except Exception as error:
            if len(plan) == 1:
                return [error]
            log.warning("a step of %d sessions failed (%s); stepping each alone", len(plan), error)
            return [result for p in plan for result in self._step([p])]

    def _apply(self, plan: list[_Planned], results: list[Choices | Exception], began: float, ended: float) -> None:
        forward_us = round((ended - began) * 1e6)
        for planned, result in zip(plan, results, strict=True):
            session = planned.session
            try:
                if isinstance(result, Exception):
                    raise result
                self._advance(planned, result, forward_us)
            except Exception as error:  # of the engine, or of turning its choices into text: this session's own trouble
                self._fail(session, error)
            session.last_step = LastStep(round((began - session.ready_since_s) * 1e6), forward_us, len(plan))
            session.ready_since_s = ended
            if session.over:
                self.remove(session)
            session.changed.set()

    def _fail(self, session: Session, error: Exception) -> None:
        log.error("session %s failed in the engine", session.session_id[:8], exc_info=error)
        session.error = VerifierError(
            StatusCode.INTERNAL,
            "ENGINE_FAILED",
            "the engine failed on this session's input; open it again with continue_from to go on",
        )
        self.remove(session)
        session.changed.set()

    def _advance(self, planned: _Planned, choices: Choices, forward_us: int) -> None:
        session, sequence = planned.session, planned.block.sequence
        session.cached += len(planned.block.tokens)
        if not planned.block.choices:
            return
        if not session.reading or session.drafted:
            session.statistics.forward_us += forward_us
        session.take(planned.guesses, choices)
        self.engine.truncate(sequence, session.cached)
