"""The verifier's side: sessions with the product's line and acceptance rule, and the scheduler's steps.

The rules are those of `cloud_verifier.scheduling` (scheduler, session), without an engine: every session that is due
takes part in the next step, as far as its token budget reaches; a session is due when it has something to
verify, when it was nudged, or when its patience is over; a prompt is read in chunks and its last chunk gives the first
token. Who gets how much of a step, how patient a session is and how many guesses its device should have are the
product's own code. What a step costs is a function of how many sessions and how many positions it has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from simpy import Environment, Event

from cloud_verifier.scheduling.draft_budget import DraftBudget
from cloud_verifier.scheduling.load import Load
from cloud_verifier.scheduling.patience import Patience
from cloud_verifier.scheduling.token_budget import Want, allocate
from netlab.simulator.clock import Bell, after
from netlab.simulator.messages import Commit, Draft
from speculation.acceptance import shared_noise
from speculation.pace.base import PATIENCE_UNLIMITED_MS, Objective
from speculation.pace.estimators import Calibration
from speculation.verifier_tree import Node, Picked, VerifierTree


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
    """step_tokens, chunk_tokens: as in the scheduler's settings. max_lookahead, max_patience_ms: as in `Served`;
    max_nodes: its max_tree_nodes."""

    step_time: StepTime = StepTime()
    step_tokens: int = 512
    chunk_tokens: int = 256
    max_lookahead: int = 64
    max_nodes: int = 256
    max_patience_ms: int = PATIENCE_UNLIMITED_MS


class Session:
    """One answer in the making.

    truth: the tokens that the target writes after the prompt. patience_ms: what the device asks for, None if it leaves
    it to the verifier. tell: takes each commit. Counters are as in `cloud_verifier.scheduling.session.Statistics`.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        truth: Sequence[int],
        patience_ms: int | None,
        ready_ms: float,
        tell: Callable[[Commit], object],
        settings: VerifierSettings | None = None,
        objective: Objective = Objective.LATENCY,
    ) -> None:
        settings = settings or VerifierSettings()
        self.line = VerifierTree(list(prompt))
        self.prompt_length, self.max_length = len(prompt), len(prompt) + len(truth)
        self.max_lookahead, self.max_nodes = settings.max_lookahead, settings.max_nodes
        self.patience = Patience(patience_ms, objective, settings.max_patience_ms)
        self.calibration, self.draft_budget = Calibration(), DraftBudget(settings.max_lookahead)
        self.ready_ms = self.roused_ms = ready_ms
        self.cached = 0
        self.nudged = False
        self.echo: tuple[float, float] | None = None  # when the latest draft was sent, and when it came
        self.target_forwards = self.verified_tokens = self.accepted_tokens = self.fills = 0
        self.trimmed_tokens, self.waited_ms = 0, 0.0
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
        """Since or from when this session may take part in a step; None if only a draft can change that."""
        if self.reading:
            return self.ready_ms
        patience_ms = self.patience.ms
        due_ms = math.inf if patience_ms == PATIENCE_UNLIMITED_MS else self.ready_ms + patience_ms
        if self.line.nodes or self.nudged:
            due_ms = min(due_ms, self.roused_ms)
        return None if due_ms == math.inf else due_ms

    def draft(self, draft: Draft, now_ms: float) -> None:
        """A draft has come."""
        idle = not (self.line.nodes or self.nudged)
        if draft.parents:
            self.draft_budget.allow(self.max_nodes)
        self.line.draft(
            draft.start,
            draft.tokens,
            draft.known_length,
            self.max_lookahead,
            draft.confidences,
            draft.parents,
            self.max_nodes,
        )
        if draft.tokens:
            self.draft_budget.heard(self.line.length - draft.known_length)
            self.patience.turnaround.came(draft.known_length, now_ms)
        elif draft.patience_ms is None and draft.known_length == self.line.length:
            self.nudged = True
        if idle:
            self.roused_ms = now_ms
        if draft.patience_ms is not None:
            self.patience.asked_ms = draft.patience_ms
        self.echo = (draft.sent_at_ms, now_ms)

    @property
    def reach(self) -> int:
        """Positions past the log whose guesses are worth evaluating: never past the end of the answer."""
        return self.max_length - self.line.length - 1

    def want(self) -> Want:
        """What it could use of a step."""
        return Want(self.line.length - self.cached, self.line.within(self.reach), self._survivals)

    def _survivals(self) -> list[float]:
        return [survival for survival, _ in self.line.survivals(self._probability, self.reach)]

    def _probability(self, node: Node) -> float:
        return self.calibration.probability(node.confidence, node.depth, node.rank)

    def block(self, positions: int) -> Block:
        """Its part in a step that gives it so many positions."""
        pending = self.line.length - self.cached
        if positions < pending:
            return Block(self, positions, None, 0, self.ready_ms)
        room, wanted = positions - pending, self.line.within(self.reach)
        best = None
        if wanted > room:
            best = [node for _, node in self.line.survivals(self._probability, self.reach)[:room]]
        due_ms = self.due_ms()
        assert due_ms is not None
        return Block(self, positions, self.line.pick(best, self.reach), max(0, wanted - room), due_ms)

    def take(self, picked: Picked) -> tuple[list[int], int]:
        """Turn a step over these guesses into log: the new tokens, and how many of them were guessed."""
        self.nudged = False
        line, done = self.line, self.line.length - self.prompt_length
        guesses = picked.tokens
        # Given a guess that is wrong, the target would write what nobody asks for.
        choices = [self._truth[done], *(self._truth[done + node.position - line.length + 1] for node in picked.nodes)]
        accepted = len(shared_noise(guesses, choices, picked.parents))
        self.target_forwards += 1
        self.verified_tokens += len(guesses)
        self.accepted_tokens += accepted
        self.fills += not guesses
        new = list(self._truth[done : done + accepted + 1])
        right = line.commit(new, self.calibration.learn)
        self.cached = line.length - 1
        self.patience.wrote(len(new), right)
        return new, accepted

    def tell(self, commit: Commit, now_ms: float) -> None:
        """Send a commit to the device."""
        self.patience.turnaround.sent(self.line.length, now_ms)
        self._tell(commit)


class Block(NamedTuple):
    """A session's part in a step.

    guesses: among its positions; None if the prompt is not read to its end yet. trimmed: guesses that were left out.
    due_ms: since when it might have stepped.
    """

    session: Session
    positions: int
    guesses: Picked | None
    trimmed: int
    due_ms: float


class Verifier:
    """One engine and its scheduler; a SimPy process. steps: engine steps so far; busy_ms: time spent in them."""

    def __init__(self, env: Environment, settings: VerifierSettings) -> None:
        self.settings = settings
        self.steps = 0
        self.busy_ms = 0.0
        self._env = env
        self._sessions: list[Session] = []
        self._load = Load()
        self._bell = Bell(env)
        env.process(self._run())

    @property
    def running(self) -> int:
        """Sessions that are not over."""
        return len(self._sessions)

    def add(self, session: Session) -> None:
        """Let a session take part from the next step on."""
        self._sessions.append(session)
        self._bell.ring()

    def draft(self, session: Session, draft: Draft) -> None:
        """A draft has come; for a session that is over it is too late."""
        if not session.over:
            session.draft(draft, self._env.now)
            self._bell.ring()

    def _run(self) -> Generator[Event, None, None]:
        env, step_time = self._env, self.settings.step_time
        while True:
            plan = self._plan()
            if not plan:
                yield self._sleep()
                continue
            began_ms = env.now
            step_ms = step_time(len(plan), sum(block.positions for block in plan))
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

    def _plan(self) -> list[Block]:
        """Everybody who is due, longest waiting first, as far as the token budget reaches."""
        now_ms, settings = self._env.now, self.settings
        dues = [(s.due_ms(), s) for s in self._sessions]
        due = sorted(((at, s) for at, s in dues if at is not None and at <= now_ms), key=lambda pair: pair[0])
        shares = allocate([s.want() for _, s in due], settings.step_tokens, settings.chunk_tokens)
        return [s.block(positions) for (_, s), positions in zip(due, shares, strict=True) if positions]

    def _apply(self, plan: list[Block], began_ms: float) -> None:
        now_ms = self._env.now
        used = sum(block.positions for block in plan) / self.settings.step_tokens
        self._load.stepped(used, began_ms, now_ms)
        for session, positions, guesses, trimmed, due_ms in plan:
            session.waited_ms += due_ms - session.ready_ms
            session.ready_ms = session.roused_ms = now_ms
            session.patience.load = self._load.share
            if guesses is None:
                session.cached += positions
                continue
            session.trimmed_tokens += trimmed
            session.draft_budget.stepped(len(guesses.nodes), trimmed, full=used >= 1)
            start = session.line.length
            new, accepted = session.take(guesses)
            if session.over:
                self._sessions.remove(session)
            echo = session.echo
            commit = Commit(
                start=start,
                tokens=new,
                drafted=accepted,
                echo_sent_at_ms=echo and echo[0],
                hold_ms=now_ms - echo[1] if echo else 0.0,
                queue_ms=began_ms - due_ms,
                forward_ms=now_ms - began_ms,
                budget=session.draft_budget.tokens,
                finished=session.over,
            )
            session.tell(commit, now_ms)
