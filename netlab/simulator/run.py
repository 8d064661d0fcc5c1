"""Play answers: any number of devices, each with its answer, its link and its pace, against one verifier or several."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial

from simpy import Environment, Event

from netlab.simulator.clock import after
from netlab.simulator.device import Device, DeviceSettings, PaceError
from netlab.simulator.link import Link
from netlab.simulator.messages import OPEN_BYTES, PROMPT_TOKEN_BYTES, Commit, Draft
from netlab.simulator.pair import Answer
from netlab.simulator.verifier import Session, Verifier, VerifierSettings
from speculation.pace.base import Pace

PROMPT_TOKENS = 32
TOKEN_IDS = 30_000


@dataclass(frozen=True)
class Rider:
    """One device. A pace and a link serve one rider only.

    starts_ms: when it opens its session. leaves_patience: to the verifier, whatever its pace would ask for.
    """

    answer: Answer
    link: Link
    pace: Pace
    device: DeviceSettings = field(default_factory=DeviceSettings)
    prompt_tokens: int = PROMPT_TOKENS
    starts_ms: float = 0.0
    leaves_patience: bool = False


@dataclass(frozen=True)
class Result:
    """What one answer took and cost; names and meanings as in `edge_client.types.Metrics`.

    arrived_ms: when each token came to the device, from the opening of its session on. same_words: verifier and device
    hold exactly what the target would have written alone. trimmed_tokens: guesses that full steps left out; waited_ms:
    time that the verifier spent waiting for guesses.
    """

    tokens: int
    arrived_ms: Sequence[float]
    target_forwards: int
    verified_tokens: int
    accepted_tokens: int
    drafted_tokens: int
    draft_messages: int
    commits: int
    uplink_bytes: int
    downlink_bytes: int
    same_words: bool
    trimmed_tokens: int = 0
    waited_ms: float = 0.0

    @property
    def ttft_ms(self) -> float:
        """Time to the first token."""
        return self.arrived_ms[0]

    @property
    def total_ms(self) -> float:
        """Time to the last token."""
        return self.arrived_ms[-1]

    @property
    def ms_per_token(self) -> float:
        """Mean over the tokens after the first."""
        return (self.total_ms - self.ttft_ms) / max(1, self.tokens - 1)


@dataclass(frozen=True)
class Played:
    """All answers, in the order of the riders, and what the engines did for them, all together.

    sessions: how many answers each verifier gave.
    """

    results: list[Result]
    steps: int
    busy_ms: float
    sessions: Sequence[int] = ()


class Assignment(Enum):
    """Which of several verifiers a session goes to, decided when it opens."""

    ROUND_ROBIN = "round-robin"
    LEAST_SESSIONS = "least-sessions"


def simulate(
    riders: Sequence[Rider],
    settings: VerifierSettings | None = None,
    verifiers: int = 1,
    assignment: Assignment = Assignment.ROUND_ROBIN,
) -> Played:
    """Play all riders' answers at once, to their ends.

    verifiers: how many there are, all alike. Deterministic. Raises ValueError if there is no verifier, PaceError if a
    pace waits for what will never come.
    """
    if verifiers < 1:
        raise ValueError(f"somebody has to verify; there are {verifiers} verifiers")
    env = Environment()
    house = _House([Verifier(env, settings or VerifierSettings()) for _ in range(verifiers)], assignment)
    rides = [_Ride(env, house, rider) for rider in riders]
    for ride in rides:
        try:
            env.run(until=ride.finished)
        except RuntimeError as error:
            if isinstance(error, PaceError):
                raise
            raise PaceError(
                f"the pace {ride.rider.pace.name!r} waits for what will never come, "
                f"after {len(ride.session.answer) if ride.session else 0} tokens"
            ) from error
    return Played(
        [ride.result() for ride in rides],
        sum(verifier.steps for verifier in house.verifiers),
        sum(verifier.busy_ms for verifier in house.verifiers),
        house.sessions,
    )


class _House:
    """The verifiers, and who sends sessions to them. sessions: how many each got."""

    def __init__(self, verifiers: Sequence[Verifier], assignment: Assignment) -> None:
        self.verifiers, self.sessions = verifiers, [0] * len(verifiers)
        self._assignment, self._turns = assignment, itertools.cycle(range(len(verifiers)))

    def choose(self) -> Verifier:
        """For the next session."""
        index = next(self._turns)
        if self._assignment is Assignment.LEAST_SESSIONS:
            index = min(range(len(self.verifiers)), key=lambda i: self.verifiers[i].running)
        self.sessions[index] += 1
        return self.verifiers[index]


def simulate_in_groups(
    riders: Sequence[Rider], size: int, apart_ms: float, settings: VerifierSettings, verifiers: int = 1
) -> Played:
    """Play so many riders at a time, opened apart_ms after one another, group by group; as `simulate`."""
    played = [
        simulate(
            [replace(rider, starts_ms=number * apart_ms) for number, rider in enumerate(riders[first : first + size])],
            settings,
            verifiers,
        )
        for first in range(0, len(riders), size)
    ]
    return Played(
        [result for group in played for result in group.results],
        sum(group.steps for group in played),
        sum(group.busy_ms for group in played),
    )


class _Ride:
    """A rider's wiring: opening, and messages through the link."""

    def __init__(self, env: Environment, house: _House, rider: Rider) -> None:
        self.rider = rider
        self.session: Session | None = None
        self.finished: Event = env.event()
        self._env, self._house = env, house
        self._prompt = [1] * rider.prompt_tokens
        # Even and telling of their position, so that an answer that slips by a position is noticed.
        self._truth = [2 * (7919 * i % TOKEN_IDS) for i in range(len(rider.answer.hits))]
        self._device = Device(env, rider.answer, self._truth, rider.pace, rider.device, self._send_draft)
        after(env, rider.starts_ms, self._open)

    def _open(self) -> None:
        size = OPEN_BYTES + PROMPT_TOKEN_BYTES * len(self._prompt)
        arrival_ms = self.rider.link.up.arrival_ms(self._env.now, size)
        after(self._env, arrival_ms - self._env.now, self._opened)

    def _opened(self) -> None:
        """The verifier answers at once that the session is open, and begins to read the prompt."""
        rider, pace = self.rider, self.rider.pace
        self._verifier = self._house.choose()
        self.session = Session(
            self._prompt,
            self._truth[: rider.answer.tokens],
            None if rider.leaves_patience else pace.patience_ms,
            self._env.now,
            self._send_commit,
            self._verifier.settings,
            pace.objective,
        )
        arrival_ms = rider.link.down.arrival_ms(self._env.now, OPEN_BYTES + PROMPT_TOKEN_BYTES * len(self._prompt))
        after(self._env, arrival_ms - self._env.now, self._ride)
        self._verifier.add(self.session)

    def _ride(self) -> None:
        process = self._env.process(self._device.run(self._prompt, self._verifier.settings.max_lookahead))
        assert process.callbacks is not None
        process.callbacks.append(self._done)

    def _done(self, process: Event) -> None:
        if process.ok:
            self.finished.succeed()

    def _send_draft(self, draft: Draft) -> None:
        assert self.session is not None
        if self.rider.leaves_patience:
            draft = draft._replace(patience_ms=None)
        arrival_ms = self.rider.link.up.arrival_ms(self._env.now, draft.size_bytes)
        after(self._env, arrival_ms - self._env.now, partial(self._verifier.draft, self.session, draft))

    def _send_commit(self, commit: Commit) -> None:
        arrival_ms = self.rider.link.down.arrival_ms(self._env.now, commit.size_bytes)
        after(self._env, arrival_ms - self._env.now, partial(self._device.hear, commit))

    def result(self) -> Result:
        """Once finished."""
        session, device, link = self.session, self._device, self.rider.link
        assert session is not None
        truth = self._truth[: self.rider.answer.tokens]
        return Result(
            tokens=len(session.answer),
            arrived_ms=[at_ms - self.rider.starts_ms for at_ms in device.arrived_ms],
            target_forwards=session.target_forwards,
            verified_tokens=session.verified_tokens,
            accepted_tokens=session.accepted_tokens,
            drafted_tokens=device.drafted_tokens,
            draft_messages=device.draft_messages,
            commits=device.commits,
            uplink_bytes=link.up.bytes,
            downlink_bytes=link.down.bytes,
            same_words=session.answer == truth and device.line.log == session.line.log,
            trimmed_tokens=session.trimmed_tokens,
            waited_ms=session.waited_ms,
        )
