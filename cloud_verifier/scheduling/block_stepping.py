"""Sessions on a `TargetEngine`: the engine evaluates the blocks that it is told to, and keeps what the log took."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from cloud_verifier.engines.base import Block, Choices, EngineDead, EngineFull, TargetEngine
from cloud_verifier.log_redaction import log_failure
from cloud_verifier.scheduling.own_guesses import OwnGuesses
from cloud_verifier.scheduling.preemption import Company, Preemption
from cloud_verifier.scheduling.session import Session
from cloud_verifier.scheduling.stepping import NO_GUESSES, Evaluated, Planned, Stepping
from cloud_verifier.scheduling.token_budget import Want
from speculation.verifier_tree import Picked

log = logging.getLogger(__name__)


class BlockStepping(Stepping[Block, Choices]):
    """Who has a sequence of the engine, how far each log is evaluated, and room for guesses are decided here."""

    def __init__(self, engine: TargetEngine, own: OwnGuesses) -> None:
        self._engine = engine
        self._own = own
        self.seats = Preemption(engine)

    @property
    def preemptions(self) -> int:
        return self.seats.preemptions

    def seat(self, session: Session, company: Company) -> bool:
        return self.seats.take(session, company)

    def want(self, session: Session) -> Want:
        return Want(session.line.length - session.cached, session.guesses, session.survivals)

    def plan(self, session: Session, positions: int, due_s: float) -> Planned[Block]:
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
        return Planned(session, block, guesses, trimmed, due_s, len(block.tokens))

    def _reserved(self, session: Session, pending: int, room: int) -> Picked:
        """The guesses of a session that a step has room for, and the engine too: if not for all, then without the
        verifier's own, then for a line."""
        assert session.sequence is not None
        branching = self._engine.info.trees
        for trees in (True, False) if room and branching and session.line.forked else (False,):
            picked = session.pick(room, trees=trees) if room else NO_GUESSES
            for guesses in (self._own.beside(session, picked, trees=branching), picked):
                if not guesses.nodes:
                    continue
                try:
                    self._engine.reserve(session.sequence, pending + len(guesses.nodes), guesses.parents)
                except EngineFull:  # there is room for the log itself; nobody's is taken for guesses
                    continue
                return guesses
        return NO_GUESSES

    def step(self, plan: Sequence[Planned[Block]]) -> list[Choices | Exception]:
        """One forward for all. If it fails, each session alone, so that one session's trouble stays its own."""
        try:
            results = list(self._engine.step([planned.work for planned in plan]))
            if len(results) != len(plan):
                raise RuntimeError(f"{len(results)} results for {len(plan)} blocks")
            return [*results]
        except EngineDead:
            raise
        except Exception as error:
            if len(plan) == 1:
                return [error]
            log_failure(log, f"a step of {len(plan)} sessions failed; stepping each alone", error, logging.WARNING)
            return [result for planned in plan for result in self.step([planned])]

    def evaluated(self, planned: Planned[Block], result: Choices | Exception) -> Evaluated:
        guesses, own = len(planned.guesses.nodes), len(planned.guesses.own)
        return Evaluated(planned.positions - guesses, guesses - own, own)

    def apply(self, planned: Planned[Block], result: Choices) -> int | None:
        session, guesses = planned.session, planned.guesses
        session.cached += planned.positions - len(guesses.nodes)
        if not planned.work.choices:
            return None
        path = session.take(guesses, result)
        self._engine.keep(planned.work.sequence, session.cached, path)
        session.cached += len(path)
        return len(guesses.nodes) - len(guesses.own)
