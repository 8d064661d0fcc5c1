"""Who has keys and values in the engine when there is not room for everybody's.

A session whose keys and values are given up loses no word: when it next has something to do, its log is read again, as
far as pages are not found that were kept.

* Those of equal beginnings are shared, among the sessions of one owner only: how soon an answer begins must not tell
  anybody what others ask.
* Nobody's are given up for guesses.
* Those of a session that has been idle, or without a device, may be taken by anyone; those of one at work only by its
  seniors: who came first, one level of priority counting as `PRIORITY_S` seconds.
* Who gets a place gets the room to read all of its log at once, and keeps it until it has written something.

So the most senior session that is due always gets its room sooner or later, whoever gets any writes at least one token
for it, and nobody's reading is thrown away half done: no deadlock, and no livelock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from cloud_verifier.engines.base import EngineFull, TargetEngine
from cloud_verifier.scheduling.session import Session

IDLE_S = 1.0  # a session that waits for its device as long as this may have to read its log again
PRIORITY_S = 1.0  # of waiting, that one level of priority is worth


@dataclass(frozen=True)
class Company:
    """Whom a session meets that asks for room.

    others: whose keys and values may be taken, except those of `seated`, which have room in this step. due: those that
    have something to do.
    """

    others: Collection[Session]
    seated: Collection[Session]
    due: Collection[Session]
    now_s: float


class Preemption:
    """The sequences of an engine, and the sessions that have them."""

    def __init__(self, engine: TargetEngine) -> None:
        self._engine = engine
        self.preemptions = 0

    def take(self, session: Session, company: Company) -> bool:
        """Make room for what a session's log has that the engine has not; whether there is any.

        Raises EngineFull if the session can never have room: nobody else has any.
        """
        fresh = session.sequence is None
        if session.sequence is None:
            session.sequence = self._engine.open(session.line.log, session.owner)
            session.cached = self._engine.length(session.sequence)
        victims = self._victims(session, company)
        while True:
            try:
                self._engine.reserve(session.sequence, session.line.length - session.cached)
            except EngineFull:
                if (victim := next(victims, None)) is not None:
                    self.give_up(victim)
                    continue
                if fresh:
                    self._close(session)
                if all(other.sequence is None for other in company.others if other is not session):
                    raise
                return False
            if session.found is None:
                session.found = min(session.cached, session.prompt_length)
            session.evicted = False
            return True

    def _victims(self, session: Session, company: Company) -> Iterator[Session]:
        """Whose keys and values a session may take, in order. Looks at the others once the first is asked for: there
        is room as a rule, and to look for every session of every step costs the square of the sessions."""
        held = [other for other in company.others if other.sequence is not None and other is not session]
        idle_since_s = company.now_s - IDLE_S
        resting = {v for v in held if v not in company.due and (not v.attached or v.ready_since_s <= idle_since_s)}
        juniors = [v for v in held if v not in resting and v.has_written and _rank(v) > _rank(session)]
        yield from (
            *sorted(resting - set(company.seated), key=lambda v: (v.attached, v.ready_since_s)),
            *sorted((v for v in juniors if v not in company.seated), key=_rank, reverse=True),
        )

    def give_up(self, session: Session) -> None:
        """A session's keys and values make room for another's."""
        session.evicted, session.has_written = session.has_written, False
        self.preemptions += 1
        self._close(session)

    def _close(self, session: Session) -> None:
        sequence, session.sequence, session.cached = session.sequence, None, 0
        assert sequence is not None
        self._engine.close(sequence)


def _rank(session: Session) -> tuple[float, str]:
    """Lower is senior; no two are equal."""
    return session.arrived_s - session.priority * PRIORITY_S, session.session_id
