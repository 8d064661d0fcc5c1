"""The verifier's own guesses in a step: where a device's end, in the room and time that they leave.

They go on after the likeliest path that the device has drawn, or after the log where it has drawn none. One is worth
what it saves, its survival times a step for its session; it costs a position of the step and the time it takes to
guess, for every session in the step. So on a full verifier there are none.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress

from cloud_verifier.guessing.base import BatchedSource, Guesser, Job
from cloud_verifier.log_redaction import log_failure
from cloud_verifier.scheduling.position_cost import PositionCost
from cloud_verifier.scheduling.session import Session
from speculation.verifier_tree import Node, Picked

log = logging.getLogger(__name__)

MOST = 16  # of one session in a step
DISCOUNT = 0.9  # guesses that are right save a little less than a step: the device's may have come meanwhile
SLOW = 0.1  # how fast the time of a guess is learned


class OwnGuesses:
    """Adds guesses to what is picked for a step."""

    def __init__(self, cost: PositionCost, clock: Callable[[], float] = time.perf_counter) -> None:
        self._cost, self._clock = cost, clock
        self._guess_s = 1e-4
        self._sessions, self._room = 1, 0

    def begin(self, sessions: int, room: int) -> None:
        """A step begins with so many sessions, and has room for so many positions more."""
        self._sessions, self._room = max(1, sessions), room // max(1, sessions)

    def ahead(self, sessions: Sequence[Session]) -> Callable[[], None] | None:
        """What is to be drawn for these sessions before a step, for the engine's thread to do; None if nothing."""
        if not self._cost.step_s:
            return None
        found: dict[BatchedSource, list[tuple[Session, Job]]] = {}
        for session in sessions:
            if (guesser := session.guesser) is None or (source := guesser.batch) is None:
                continue
            nodes = session.line.first_path()[: max(0, session.reach)]
            path, survival = [node.token for node in nodes], DISCOUNT * math.prod(map(session.probability, nodes))
            most = min(MOST, session.reach - len(path))
            if most > 0 and not session.over:
                job = Job(guesser, session.line.log, path, survival, most, session.own_probability)
                found.setdefault(source, []).append((session, job))
        if not found:
            return None
        step_s, position_s, count = self._cost.step_s, self._cost.position_s, len(sessions)

        def worth(survivals: float, drawn: int, forward_s: float) -> bool:
            return survivals * step_s > count * (forward_s + drawn * position_s)

        def draw() -> None:
            for source, jobs in found.items():
                try:
                    source.draw([job for _, job in jobs], worth)
                except Exception as error:
                    source.failed(error)
                    for session, _ in jobs:
                        _give_up(session)

        return draw

    def after(self, session: Session, picked: Picked) -> Picked:
        """The picked guesses and the verifier's own after them, if any are worth it.

        A session whose guesser fails goes on without one.
        """
        if session.guesser is None or not self._cost.step_s:
            return picked
        try:
            own = self._own(session, session.guesser, picked)
        except Exception as error:
            log_failure(log, f"session {session.session_id[:8]} gets no more guesses of the verifier's own", error)
            _give_up(session)
            return picked
        return picked.with_own(own) if own else picked

    def _own(self, session: Session, guesser: Guesser, picked: Picked) -> list[Node]:
        trunk, step_s = picked.trunk, self._cost.step_s
        most = min(MOST, self._room, session.reach - trunk)
        if most <= 0:
            return []
        nodes = list(picked.nodes[:trunk])
        survival = DISCOUNT
        for node in nodes:
            survival *= session.probability(node)
        least = self._sessions * (self._cost.position_s + self._guess_s) / step_s
        own: list[Node] = []
        began_s, asked = self._clock(), 0
        with closing(guesser.after(session.line.log, [node.token for node in nodes])) as guesses:
            for token, confidence in guesses:
                asked += 1
                depth = len(own)
                survival *= session.own_probability(depth, confidence)
                if survival < least:
                    break
                own.append(Node(token, confidence, depth, session.line.length + trunk + depth, None))
                if len(own) == most:
                    break
        self._guess_s += SLOW * ((self._clock() - began_s) / max(1, asked) - self._guess_s)
        return own


def _give_up(session: Session) -> None:
    """Free what a failed guesser held, as far as it still can."""
    guesser, session.guesser = session.guesser, None
    if guesser is not None:
        with suppress(Exception):
            guesser.close()
