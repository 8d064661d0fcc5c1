"""Play answers: any number of devices, each with its answer, its link and its pace, against one verifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from simpy import Environment, Event

from netlab.simulator.clock import after
from netlab.simulator.device import Device, DeviceSettings, PaceError
from netlab.simulator.link import Link
from netlab.simulator.messages import OPEN_BYTES, PROMPT_TOKEN_BYTES, Commit, Draft
from netlab.simulator.pair import Answer
from netlab.simulator.verifier import Session, Verifier, VerifierSettings
from speculation.pace import Pace

PROMPT_TOKENS = 32
TOKEN_IDS = 30_000


@dataclass(frozen=True)
class Rider:
    """One device. starts_ms: when it opens its session. A pace and a link serve one rider only."""

    answer: Answer
    link: Link
    pace: Pace
    device: DeviceSettings = field(default_factory=DeviceSettings)
    prompt_tokens: int = PROMPT_TOKENS
    starts_ms: float = 0.0


@dataclass(frozen=True)
class Result:
    """What one answer took and cost; names and meanings as in `edge_client.types.Metrics`.

    Times are counted from the opening of the session to the arrival of the last token. same_words: verifier and device
    hold exactly what the target would have written alone.
    """

    tokens: int
    ttft_ms: float
    total_ms: float
    target_forwards: int
    verified_tokens: int
    accepted_tokens: int
    drafted_tokens: int
    draft_messages: int
    commits: int
    uplink_bytes: int
    downlink_bytes: int
    same_words: bool

    @property
    def ms_per_token(self) -> float:
        """Mean over the tokens after the first."""
        return (self.total_ms - self.ttft_ms) / max(1, self.tokens - 1)


@dataclass(frozen=True)
class Played:
    """All answers, in the order of the riders, and what the engine did for them."""

    results: list[Result]
    steps: int
    busy_ms: float


def simulate(riders: Sequence[Rider], settings: VerifierSettings | None = None) -> Played:
    """Play all riders' answers at once, to their ends.

    Deterministic. Raises PaceError if a pace waits for what will never come.
    """
    env = Environment()
    verifier = Verifier(env, settings or VerifierSettings())
    rides = [_Ride(env, verifier, rider) for rider in riders]
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
    return Played([ride.result() for ride in rides], verifier.steps, verifier.busy_ms)


class _Ride:
    """A rider's wiring: opening, and messages through the link."""

    def __init__(self, env: Environment, verifier: Verifier, rider: Rider) -> None:
        self.rider = rider
        self.session: Session | None = None
        self.finished: Event = env.event()
        self._env, self._verifier = env, verifier
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
        rider = self.rider
        truth = self._truth[: rider.answer.tokens]
        self.session = Session(self._prompt, truth, rider.pace.patience_ms, self._env.now, self._send_commit)
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
            ttft_ms=device.first_ms - self.rider.starts_ms,
            total_ms=device.finished_ms - self.rider.starts_ms,
            target_forwards=session.target_forwards,
            verified_tokens=session.verified_tokens,
            accepted_tokens=session.accepted_tokens,
            drafted_tokens=device.drafted_tokens,
            draft_messages=device.draft_messages,
            commits=device.commits,
            uplink_bytes=link.up.bytes,
            downlink_bytes=link.down.bytes,
            same_words=session.answer == truth and device.line.log == session.line.log,
        )
