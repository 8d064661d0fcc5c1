"""Sessions on a `SelfSchedulingEngine`: it is told who may go on, with which guesses, and says what it wrote.

The engine's log is the session's: `cached` is all of it but its last token from the first token on that it wrote, and 0
before. What the engine holds of it is the engine's own business, and so are seats and preemption.
"""

from __future__ import annotations

from collections.abc import Sequence

from cloud_verifier.engines.self_scheduling import SelfSchedulingEngine, Turn, Written
from cloud_verifier.scheduling.own_guesses import OwnGuesses
from cloud_verifier.scheduling.preemption import Company
from cloud_verifier.scheduling.session import Session
from cloud_verifier.scheduling.stepping import NO_GUESSES, Evaluated, Planned, Stepping
from cloud_verifier.scheduling.token_budget import Want


class TurnStepping(Stepping[Turn, Written]):
    """Guesses are lines, and none are given while a prompt is read."""

    def __init__(self, engine: SelfSchedulingEngine, own: OwnGuesses) -> None:
        self._engine = engine
        self._own = own

    @property
    def preemptions(self) -> int:
        return self._engine.preemptions

    def seat(self, session: Session, company: Company) -> bool:
        if session.sequence is None:
            session.sequence = self._engine.open(session.line.log, session.sampler, session.owner)
        return True

    def want(self, session: Session) -> Want:
        guesses = min(session.guesses, self._engine.most_guesses) if session.cached else 0
        return Want(1, guesses, session.survivals)

    def plan(self, session: Session, positions: int, due_s: float) -> Planned[Turn]:
        assert session.sequence is not None
        guesses, wanted, most = NO_GUESSES, session.guesses if session.cached else 0, self._engine.most_guesses
        room = min(positions - 1, most)
        if room and wanted:
            guesses = session.pick(room, trees=False)
        trimmed = max(0, wanted - (room if guesses.nodes else 0))
        if session.cached:
            guesses = self._own.beside(session, guesses, trees=False).first(most)
        turn = Turn(session.sequence, guesses.tokens)
        unread = session.line.length - session.cached  # all of it may be read in this step, or less
        return Planned(session, turn, guesses, trimmed, due_s, unread + len(guesses.nodes))

    def step(self, plan: Sequence[Planned[Turn]]) -> list[Written | Exception]:
        return [*self._engine.step([planned.work for planned in plan])]

    def evaluated(self, planned: Planned[Turn], result: Written | Exception) -> Evaluated:
        if isinstance(result, Exception):
            return Evaluated(0, 0)
        own = len(planned.guesses.first(result.checked).own)
        return Evaluated(result.positions - result.checked, result.checked - own, own)

    def apply(self, planned: Planned[Turn], result: Written) -> int | None:
        session = planned.session
        if session.found is None and result.positions:
            session.found = min(result.found, session.prompt_length)
        if not result.tokens:
            return None
        guesses = planned.guesses.first(result.checked)
        session.commit(guesses, result.tokens, result.logprobs)
        session.cached = session.line.length - 1
        return result.checked - len(guesses.own)
