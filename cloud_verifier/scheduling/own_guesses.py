"""The verifier's own guesses in a step: beside a device's and where those end, in the room and time that they leave.

A guess is worth what it saves, its survival times a step for its session. Where the device has guesses, its survival
is the probability that the log comes there and none of them is right, times how often the verifier's then is. It costs
a position of the step and the time it takes to guess, for every session in the step. So on a full verifier there are
none.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing, suppress
from typing import NamedTuple

from cloud_verifier.guessing.base import BatchedSource, Guesser, Job, Start
from cloud_verifier.log_redaction import log_failure
from cloud_verifier.scheduling.guess_thread import Draw
from cloud_verifier.scheduling.position_cost import PositionCost
from cloud_verifier.scheduling.session import Session
from speculation.verifier_tree import Node, Picked

log = logging.getLogger(__name__)

MOST = 16  # of one session in a step
MOST_PLACES = 8  # of a tree that a guesser is asked for
DISCOUNT = 0.9  # guesses that are right save a little less than a step: the device's may have come meanwhile
SLOW = 0.1  # how fast the time of a guess is learned
LEAST_SURVIVAL = 0.02  # a device's guess less likely than this is nothing to go on from


class Place(NamedTuple):
    """Behind a picked guess, -1 for the log. open: probability that the log comes there and no guess of the device's is
    right. said: those guesses."""

    at: int
    open: float
    said: Collection[int]


class OwnGuesses:
    """Adds guesses to what is picked for a step."""

    def __init__(self, cost: PositionCost, clock: Callable[[], float] = time.perf_counter) -> None:
        self._cost, self._clock = cost, clock
        self._guess_s = 1e-4
        self._sessions, self._room = 1, 0

    def begin(self, sessions: int, room: int) -> None:
        """A step begins with so many sessions, and has room for so many positions more."""
        self._sessions, self._room = max(1, sessions), room // max(1, sessions)

    def ahead(self, sessions: Sequence[Session]) -> Draw | None:
        """What is to be drawn for these sessions before a step, for a `GuessThread` to do; None if nothing."""
        if not self._cost.step_s:
            return None
        found: dict[BatchedSource, list[tuple[Session, Job]]] = {}
        for session in sessions:
            if (guesser := session.guesser) is None or (source := guesser.batch) is None:
                continue
            begun = session.line.length > session.prompt_length  # the first token does not wait for a model's reading
            if begun and session.reach > 0 and not session.over:
                found.setdefault(source, []).append((session, _job(session, guesser)))
        if not found:
            return None
        step_s, position_s, count = self._cost.step_s, self._cost.position_s, len(sessions)

        def draw(wanted: Callable[[], bool]) -> None:
            def worth(survivals: float, drawn: int, forward_s: float) -> bool:
                return wanted() and survivals * step_s > count * (forward_s + drawn * position_s)

            for source, jobs in found.items():
                try:
                    source.draw([job for _, job in jobs], worth)
                except Exception as error:
                    source.failed(error)
                    for session, _ in jobs:
                        _give_up(session)

        return draw

    def beside(self, session: Session, picked: Picked, *, trees: bool) -> Picked:
        """The picked guesses and the verifier's own, if any are worth it. trees: whether they may branch; if not, own
        guesses may stand in the place of a device's that are less likely to be right.

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
        if not own:
            return picked
        return picked.with_own(_lines(own)) if trees else _better_line(session, picked, own)

    def _own(self, session: Session, guesser: Guesser, picked: Picked) -> list[_Own]:
        """Those that are worth it, the likeliest first."""
        most = min(MOST, self._room, session.reach)
        if most <= 0:
            return []
        least = self._sessions * (self._cost.position_s + self._guess_s) / self._cost.step_s
        own: list[_Own] = []
        began_s, asked = self._clock(), 0
        for place in _places(session, picked, least):
            if asked >= 2 * MOST:  # on a text of which everything repeats each would be worth it, and none is free
                break
            path = picked.path_to(place.at)
            survival, asked = place.open, asked + 1
            with closing(guesser.after(session.line.log, path)) as guesses:
                for depth, (token, confidence) in enumerate(guesses):
                    asked += 1
                    beside = bool(place.said) and depth == 0
                    survival *= session.own_probability(depth, confidence, beside=beside)
                    position = len(path) + depth
                    if survival < least or position >= session.reach or (beside and token in place.said):
                        break
                    node = Node(token, confidence, depth, session.line.length + position, None)
                    node.rank = int(beside)
                    own.append(_Own(survival, place.at, node))
                    if depth + 1 == most:
                        break
        self._guess_s += SLOW * ((self._clock() - began_s) / max(1, asked) - self._guess_s)
        own.sort(key=lambda one: -one.survival)  # stable: and survival falls along a line
        return own[:most]


class _Own(NamedTuple):
    """at: the picked guess that its line hangs on."""

    survival: float
    at: int
    node: Node


def _lines(own: Sequence[_Own]) -> dict[int, list[Node]]:
    lines: dict[int, list[Node]] = {}
    for one in own:
        lines.setdefault(one.at, []).append(one.node)
    return lines


def _survivals(session: Session, picked: Picked) -> list[float]:
    """Of the log, and of each picked guess: the probability that it and all before it are right."""
    reached, left = [DISCOUNT], [1.0]
    for index, node in enumerate(picked.nodes):
        parent = picked.parent(index) + 1
        if reached[parent] < LEAST_SURVIVAL:
            reached.append(0.0)
        else:
            likely = min(left[parent], session.probability(node))
            left[parent] -= likely
            reached.append(reached[parent] * likely)
        left.append(1.0)
    return reached


def _places(session: Session, picked: Picked, least: float) -> list[Place]:
    """Where a guess may be worth so much, the likeliest first."""
    reached = _survivals(session, picked)
    left, said = list(reached), [list[int]() for _ in reached]
    for index, node in enumerate(picked.nodes):
        parent = picked.parent(index) + 1
        left[parent] -= reached[index + 1]
        said[parent].append(node.token)
    places = [Place(at - 1, left[at], said[at]) for at in range(len(reached)) if left[at] >= least]
    return heapq.nlargest(MOST_PLACES, places, key=lambda place: place.open)


def _better_line(session: Session, picked: Picked, own: Sequence[_Own]) -> Picked:
    """Of picked guesses that are a line, and lines that leave it: the one with the most right guesses to expect."""
    reached = _survivals(session, picked)
    own_gains: dict[int, float] = {}
    for one in own:
        own_gains[one.at] = own_gains.get(one.at, 0.0) + one.survival
    at = max(own_gains, key=lambda at: own_gains[at] - sum(reached[at + 2 :]))
    if own_gains[at] <= sum(reached[at + 2 :]):
        return picked
    return Picked(picked.nodes[: at + 1]).with_own({at: _lines(own)[at]})


def _job(session: Session, guesser: Guesser) -> Job:
    """What a source that draws ahead is to know: the path that the device drew first, as far as it is likely."""
    nodes = session.line.first_path()[: session.reach]
    path: list[int] = []
    starts: list[Start] = []
    reached, children = DISCOUNT, session.line.first_guesses
    for node in [*nodes, None]:
        left, said = 1.0, {}
        for child in children:
            likely = min(left, session.probability(child))
            left -= likely
            said[child.token] = reached * likely
        starts.append(Start(reached * left * session.own_probability(0, beside=bool(said)), said))
        if node is None or said[node.token] < LEAST_SURVIVAL:
            break
        path.append(node.token)
        reached, children = said[node.token], list(node.children.values())
    return Job(guesser, session.line.log, path, starts, min(MOST, session.reach), session.own_probability)


def _give_up(session: Session) -> None:
    """Free what a failed guesser held, as far as it still can."""
    guesser, session.guesser = session.guesser, None
    if guesser is not None:
        with suppress(Exception):
            guesser.close()
