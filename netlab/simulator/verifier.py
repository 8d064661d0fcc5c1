"""The verifier's side: sessions with the product's line and acceptance rule, and the scheduler's steps.

The rules are those of `cloud_verifier.scheduler` and `cloud_verifier.sessions`, without an engine: every session that
is due takes part in the next step; a session is due when it has something to verify, when it was nudged, or when its
patience is over; a prompt is read in chunks and its last chunk gives the first token. What a step costs is a function
of how many sessions and how many positions it has.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from simpy import Environment, Event

from netlab.simulator.clock import Bell, after
from netlab.simulator.messages import Commit, Draft
from speculation.acceptance import shared_noise
from speculation.line import VerifierLine
from speculation.pace import PATIENCE_UNLIMITED_MS


@dataclass(frozen=True)
class StepTime:
    """What a target step costs: base_ms + per_position_ms * positions + per_session_ms * sessions."""

    base_ms: float = 30.0
    per_position_ms: float = 0.0
    per_session_ms: float = 0.0

    def __call__(self, sessions: int, positions: int) -> float:
        """Milliseconds of one step."""
        return self.base_ms + self.per_position_ms * positions + self.per_session_ms * sessions


@dataclass(frozen=True)
class VerifierSettings:
    """step_tokens, chunk_tokens: as in the scheduler's settings. max_lookahead: most guesses past the log."""

    step_time: StepTime = StepTime()
    step_tokens: int = 512
    chunk_tokens: int = 256
    max_lookahead: int = 64


class Session:
    """One answer in the making.

    truth: the tokens that the target writes after the prompt. tell: takes each commit. Counters are as in
    `cloud_verifier.sessions.Statistics`.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        truth: Sequence[int],
        patience_ms: int,
        ready_ms: float,
        tell: Callable[[Commit], object],
    ) -> None:
        self.line = VerifierLine(list(prompt))
        self.prompt_length, self.max_length = len(prompt), len(prompt) + len(truth)
        self.patience_ms, self.ready_ms = patience_ms, ready_ms
        self.cached = 0
        self.nudged = False
        self.echo: tuple[float, float] | None = None  # when the latest draft was sent, and when it came
        self.target_forwards = self.verified_tokens = self.accepted_tokens = self.fills = 0
        self._truth = truth
        self._tell = tell

    @property
    def over(self) -> bool:
        """Whether the answer is complete."""
        return self.line.length >= self.max_length

    @property
    def reading(self) -> bool:
        """Whether part of the prompt is still to be evaluated."""
        return self.line.length - self.cached > 1 or self.line.length == self.prompt_length

    @property
    def answer(self) -> list[int]:
        """What was written."""
        return self.line.log[self.prompt_length :]

    def due_ms(self) -> float | None:
        """When this session may take part in a step; None if only a draft can change that."""
        if self.reading or self.nudged or self.line.guesses or self.patience_ms == 0:
            return self.ready_ms
        if self.patience_ms == PATIENCE_UNLIMITED_MS:
            return None
        return self.ready_ms + self.patience_ms

    def draft(self, draft: Draft, now_ms: float, limit: int) -> None:
        """A draft has come."""
        self.line.draft(draft.start, draft.tokens, draft.known_length, limit)
        if draft.patience_ms is not None:
            self.patience_ms = draft.patience_ms
        self.echo = (draft.sent_at_ms, now_ms)
        if not draft.tokens and draft.known_length == self.line.length:
            self.nudged = True

    def block(self, room: int, chunk_tokens: int) -> tuple[int, list[int] | None]:
        """Positions of the next step, and the guesses among them; None if the prompt is not read to its end yet."""
        pending = self.line.length - self.cached
        chunk = min(pending, room, chunk_tokens)
        if chunk < pending:
            return chunk, None
        guesses = self.line.guesses[: min(room - chunk, max(0, self.max_length - self.line.length - 1))]
        return chunk + len(guesses), guesses

    def take(self, guesses: Sequence[int]) -> tuple[list[int], int]:
        """Turn a step over these guesses into log: the new tokens, and how many of them were guessed."""
        self.nudged = False
        line, done = self.line, self.line.length - self.prompt_length
        choices = self._truth[done : done + len(guesses) + 1]
        accepted = shared_noise(guesses, choices)
        self.target_forwards += 1
        self.verified_tokens += len(guesses)
        self.accepted_tokens += accepted
        self.fills += not guesses
        new = list(choices[: accepted + 1])
        for token in new:
            line.commit([token])
        self.cached = line.length - 1
        return new, accepted

    def tell(self, commit: Commit) -> None:
        """Send a commit to the device."""
        self._tell(commit)


class Verifier:
    """One engine and its scheduler; a SimPy process. steps: engine steps so far; busy_ms: time spent in them."""

    def __init__(self, env: Environment, settings: VerifierSettings) -> None:
        self.settings = settings
        self.steps = 0
        self.busy_ms = 0.0
        self._env = env
        self._sessions: list[Session] = []
        self._bell = Bell(env)
        env.process(self._run())

    def add(self, session: Session) -> None:
        """Let a session take part from the next step on."""
        self._sessions.append(session)
        self._bell.ring()

    def draft(self, session: Session, draft: Draft) -> None:
        """A draft has come; for a session that is over it is too late."""
        if not session.over:
            session.draft(draft, self._env.now, self.settings.max_lookahead)
            self._bell.ring()

    def _run(self) -> Generator[Event, None, None]:
        env, step_time = self._env, self.settings.step_time
        while True:
            plan, positions = self._plan()
            if not plan:
                yield self._sleep()
                continue
            began_ms = env.now
            step_ms = step_time(len(plan), positions)
            self.steps += 1
            self.busy_ms += step_ms
            yield env.timeout(step_ms)
            self._apply(plan, began_ms)

    def _sleep(self) -> Event:
        """Until something comes in, or a session's patience is over."""
        event = self._bell.wait()
        dues = [due for session in self._sessions if (due := session.due_ms()) is not None]
        if dues:
            after(self._env, max(0.0, min(dues) - self._env.now), self._bell.ring)
        return event

    def _plan(self) -> tuple[list[tuple[Session, int, list[int] | None]], int]:
        """Sessions that write come first, longest waiting first; prompts share what is left of the token budget."""
        now_ms, settings = self._env.now, self.settings
        ready = [s for s in self._sessions if (due := s.due_ms()) is not None and due <= now_ms]
        if len(ready) > 1:
            ready.sort(key=lambda s: (s.line.length - s.cached > 1, s.ready_ms))
        plan = []
        room = settings.step_tokens
        for session in ready:
            if room <= 0:
                break
            positions, guesses = session.block(room, settings.chunk_tokens)
            room -= positions
            plan.append((session, positions, guesses))
        return plan, settings.step_tokens - room

    def _apply(self, plan: list[tuple[Session, int, list[int] | None]], began_ms: float) -> None:
        now_ms = self._env.now
        for session, positions, guesses in plan:
            queue_ms, session.ready_ms = began_ms - session.ready_ms, now_ms
            if guesses is None:
                session.cached += positions
                continue
            start = session.line.length
            new, accepted = session.take(guesses)
            if session.over:
                self._sessions.remove(session)
            echo = session.echo
            session.tell(
                Commit(
                    start=start,
                    tokens=new,
                    drafted=accepted,
                    echo_sent_at_ms=echo and echo[0],
                    hold_ms=now_ms - echo[1] if echo else 0.0,
                    queue_ms=queue_ms,
                    forward_ms=now_ms - began_ms,
                    budget=self.settings.max_lookahead,
                    finished=session.over,
                )
            )
