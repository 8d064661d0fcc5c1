"""The simulated device and session do what the real ones do, message for message."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from outrider.v1 import verifier_pb2 as pb
from simpy import Environment, Event

from cloud_verifier.engines.base import Sampler
from cloud_verifier.scheduling.patience import Patience
from cloud_verifier.scheduling.scheduler import Scheduler, SchedulerSettings
from cloud_verifier.scheduling.session import Session as RealSession
from edge_client.drafters.base import Candidates, Drafter, DrafterInfo
from edge_client.link.inbox import Heard, Stop
from edge_client.riding import riding_loop as riding
from edge_client.riding.drafter_lease import DrafterLease
from netlab.simulator.device import Device, DeviceSettings
from netlab.simulator.link import Link
from netlab.simulator.messages import Commit, Draft
from netlab.simulator.pair import MARGIN_TOKENS, Answer, heavy_headed
from netlab.simulator.run import PROMPT_TOKENS, Rider, _Ride, simulate
from netlab.simulator.verifier import Session, StepTime, Verifier, VerifierSettings
from speculation.answer_text import AnswerText
from speculation.pace.adaptive import Adaptive
from speculation.pace.base import PATIENCE_UNLIMITED_MS, BoundedLookahead, FixedTree, Objective, Pace, Synchronous
from speculation.pace.tree_rounds import BestFirst
from speculation.sampling import SamplingParams
from speculation.verifier_tree import VerifierTree
from tests.mock_engine import MockEngine
from tests.mock_engine import answer as target_answer

# ----------------------------------------------------------------------------------------------------------------------
# The device

DRAFT_MS, TIP_MS = 1.7, 0.23  # so that nothing happens at the very moment when something else does
RTT_MS = 33.3
TOKENS_OF_AN_ANSWER = 60


class Clock:
    """What the riding loop takes for `time`."""

    def __init__(self) -> None:
        self.now_ms = 0.0

    def perf_counter(self) -> float:
        return self.now_ms / 1e3


class Inbox:
    """Messages that come in at their times; waiting for one makes the time pass."""

    def __init__(self, clock: Clock, arrivals: list[tuple[float, Any]]) -> None:
        self._clock, self._arrivals = clock, arrivals

    def empty(self) -> bool:
        return not self._arrivals or self._arrivals[0][0] > self._clock.now_ms + 1e-9

    def get(self) -> Any:
        at_ms, message = self._arrivals.pop(0)
        self._clock.now_ms = max(self._clock.now_ms, at_ms)
        return message


class FakeLink:
    """Takes what the riding loop sends."""

    def __init__(self, clock: Clock, inbox: Inbox) -> None:
        self.inbox, self._clock = inbox, clock
        self.sent: list[tuple[float, int, list[int], list[int], int]] = []

    def send(self, request: pb.GenerateRequest) -> None:
        draft = request.draft
        self.sent.append((self._clock.now_ms, draft.start, list(draft.tokens), list(draft.parents), draft.known_length))


class DescribedDrafter(Drafter):
    """Guesses as the simulated device does, and takes as long."""

    def __init__(self, clock: Clock, answer: Answer, truth: Sequence[int]) -> None:
        self.info = DrafterInfo("described", 100_000, "", PROMPT_TOKENS + len(answer.hits))
        self._clock, self._answer, self._truth = clock, answer, list(truth)
        self._tokens: list[int] = []

    @property
    def length(self) -> int:
        return len(self._tokens)

    def feed(self, tokens: Sequence[int]) -> None:
        self._tokens.extend(tokens)

    def rollback(self, length: int) -> None:
        del self._tokens[length:]

    def close(self) -> None:
        pass

    def candidates(self) -> Candidates:
        self._clock.now_ms += DRAFT_MS
        return self._after(self._tokens)

    def _after(self, tokens: Sequence[int]) -> Candidates:
        index = len(tokens) - PROMPT_TOKENS
        right = tokens[PROMPT_TOKENS:] == self._truth[:index] and self._answer.hits[index]
        token, confidence = self._truth[index] + (not right), self._answer.confidences[index]
        return Candidates(np.array([token, 99_999]), np.log(np.array([confidence, 1 - confidence])))


class BranchingDrafter(DescribedDrafter):
    """The same with several candidates, which looks at several branches at once."""

    most_tips = 4

    def feed_beside(self, tokens: Sequence[int], length: int, paths: Sequence[Sequence[int]]) -> list[Candidates]:
        self.feed(tokens)
        log = self._tokens[:length]
        self._clock.now_ms += len(paths) * TIP_MS
        self.looked_beside += len(paths)
        return [self._after([*log, *path]) for path in paths]

    looked_beside = 0

    def _after(self, tokens: Sequence[int]) -> Candidates:
        index, answer = len(tokens) - PROMPT_TOKENS, self._answer
        right = answer.ranks[index] if tokens[PROMPT_TOKENS:] == self._truth[:index] else -1
        confidences = [answer.confidences[index], *answer.others[index]]
        truth = self._truth[index]
        ids = [truth if rank == right else truth + 1 + 2 * rank for rank in range(len(confidences))]
        return Candidates(np.array(ids), np.array(confidences))


class Exactly:
    """In the place of `Guess`, for which it takes confidences as they are: tips of one depth are worth the same, and
    which is the first is a matter of the last bit."""

    def ranked(self, width: int, position: int, ids: Any, confidences: Any, *_: Any) -> tuple[list[int], list[float]]:
        return list(map(int, ids[:width])), list(map(float, confidences[:width]))


@pytest.mark.parametrize("make", [BoundedLookahead, lambda: Synchronous(5), Adaptive])
@pytest.mark.parametrize("seed", range(4))
def test_the_riding_loop_sends_what_the_simulated_device_sends(
    make: Callable[[], Pace], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    hits = [rng.random() < 0.8 for _ in range(TOKENS_OF_AN_ANSWER + MARGIN_TOKENS)]
    answer = Answer(TOKENS_OF_AN_ANSWER, hits, [rng.uniform(0.6, 0.99) for _ in hits])
    compare(answer, make, DeviceSettings(DRAFT_MS), DescribedDrafter, monkeypatch)


@pytest.mark.parametrize("make", [Adaptive, lambda: FixedTree(3), lambda: BestFirst(24)])
@pytest.mark.parametrize("seed", range(4))
def test_the_riding_loop_draws_trees_as_the_simulated_device_does(
    make: Callable[[], Pace], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At several tips in one evaluation."""
    [answer] = heavy_headed(0.75).answers(1, TOKENS_OF_AN_ANSWER, seed)
    answer = replace(answer, confidences=[max(0.4, confidence) for confidence in answer.confidences])  # the likeliest
    answer = replace(answer, others=[[(1 - c) * 0.48, (1 - c) * 0.16] for c in answer.confidences])
    settings = DeviceSettings(DRAFT_MS, tip_ms=TIP_MS, most_tips=4)
    drafter = compare(answer, make, settings, BranchingDrafter, monkeypatch)
    assert isinstance(drafter, BranchingDrafter)
    assert drafter.looked_beside > 0


def compare(
    answer: Answer,
    make: Callable[[], Pace],
    settings: DeviceSettings,
    drafter_of: type[DescribedDrafter],
    monkeypatch: pytest.MonkeyPatch,
) -> Drafter:
    """Plays an answer in both, and asserts that both send the same at the same times."""
    tokens, hits = answer.tokens, answer.hits
    heard: list[tuple[float, Commit, float | None]] = []
    simulated: list[tuple[float, int, list[int], list[int], int]] = []

    def hear(device: Device, commit: Commit, plain: Callable[[Device, Commit], None] = Device.hear) -> None:
        plain(device, commit)
        heard.append((device._env.now, commit, device._rtt_ms))

    def send(ride: _Ride, draft: Draft, plain: Callable[[_Ride, Draft], None] = _Ride._send_draft) -> None:
        simulated.append((ride._env.now, draft.start, draft.tokens, list(draft.parents), draft.known_length))
        plain(ride, draft)

    monkeypatch.setattr(Device, "hear", hear)
    monkeypatch.setattr(_Ride, "_send_draft", send)
    rider = Rider(answer, Link.of_rtt(RTT_MS), make(), settings)
    result = simulate([rider]).results[0]

    clock = Clock()
    monkeypatch.setattr(riding, "time", clock)
    truth = [2 * (7919 * i % 30_000) for i in range(len(hits))]
    opened = pb.Opened(
        prompt_ids=[1] * PROMPT_TOKENS, prompt_length=PROMPT_TOKENS, max_lookahead=64, vocabulary_matches=True
    )
    opened.max_tree_nodes = 256 if settings.most_tips > 1 else 0
    opened.model_info.vocabulary_size = 100_000
    arrivals: list[tuple[float, Any]] = [(RTT_MS, Heard(pb.GenerateResponse(opened=opened), RTT_MS, None))]
    for at_ms, commit, rtt_ms in heard:
        message = pb.Commit(
            start=commit.start, tokens=commit.tokens, drafted_mask=(1 << commit.drafted) - 1,
            forward_us=round(commit.forward_ms * 1e3), queue_us=round(commit.queue_ms * 1e3),
            draft_budget=commit.budget,
        )  # fmt: skip
        arrivals.append((at_ms, Heard(pb.GenerateResponse(commit=message), at_ms, rtt_ms)))
    arrivals.append((heard[-1][0], Stop()))
    link: Any = FakeLink(clock, Inbox(clock, arrivals))
    drafter = drafter_of(clock, answer, truth)
    lease = DrafterLease(drafter)
    loop = riding.RidingLoop(link, lease, make(), SamplingParams(temperature=0.0), 1)
    if isinstance(drafter, BranchingDrafter):
        loop._guess = Exactly()  # type: ignore[assignment]
    loop.inbox = link.inbox
    loop.run()

    assert loop._line.log[PROMPT_TOKENS:] == truth[:tokens]
    assert [entry[1:] for entry in link.sent[: len(simulated)]] == [entry[1:] for entry in simulated]
    assert [entry[0] for entry in link.sent[: len(simulated)]] == pytest.approx([entry[0] for entry in simulated])
    assert len(link.sent) <= len(simulated) + 1  # the real loop hears of the end in a message of its own
    assert -1e-6 <= result.ttft_ms - heard[0][0] <= DRAFT_MS + 3 * TIP_MS  # between two evaluations
    return drafter


# ----------------------------------------------------------------------------------------------------------------------
# The scheduler and its sessions


class NoText:
    def push(self, token: int) -> str:
        return ""

    def rest(self) -> str:
        return ""


def real_session(prompt: Sequence[int], seed: int, tokens: int, patience: Patience, ready_s: float) -> RealSession:
    return RealSession(
        session_id="x",
        sampler=Sampler(SamplingParams(), seed, len(prompt)),
        line=VerifierTree(list(prompt)),
        text=AnswerText(NoText(), ()),
        stop_ids=frozenset(),
        max_length=len(prompt) + tokens,
        max_lookahead=MAX_LOOKAHEAD,
        patience=patience,
        ready_since_s=ready_s,
    )


TOKENS = 30
MAX_LOOKAHEAD = 24
STEP_TIME = StepTime(20.3, 0.11, 0.7)
# What devices ask for: rounds, server-led, a patience of their own, and what is left to the verifier.
WISHES: list[tuple[int | None, Objective]] = [
    (PATIENCE_UNLIMITED_MS, Objective.LATENCY),
    (0, Objective.LATENCY),
    (12, Objective.LATENCY),
    (None, Objective.LATENCY),
    (None, Objective.BALANCED),
    (None, Objective.CAPACITY),
]


class Told(NamedTuple):
    """A commit, and to which session."""

    session: int
    at_ms: float
    start: int
    tokens: list[int]
    drafted: int
    queue_ms: float
    budget: int


@dataclass
class Script:
    """What every session opened with, and every draft that came."""

    prompts: list[list[int]]
    truths: list[list[int]]
    drafts: list[tuple[float, int, Draft]] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)


def play_simulated(seed: int, settings: VerifierSettings) -> tuple[Script, list[Session]]:
    """Random devices against the simulated verifier."""
    rng = random.Random(seed)
    prompts = [[2 + rng.randrange(60) for _ in range(rng.choice((1, 3, 20, 45)))] for _ in WISHES]
    script = Script(prompts, [target_answer(prompt, i, TOKENS) for i, prompt in enumerate(prompts)])
    env = Environment()
    verifier = Verifier(env, settings)
    ours: list[Session] = []

    def tell(index: int) -> Callable[[Commit], None]:
        def told(commit: Commit) -> None:
            script.told.append(
                Told(index, env.now, commit.start, commit.tokens, commit.drafted, commit.queue_ms, commit.budget)
            )

        return told

    def device(index: int) -> Generator[Event, None, None]:
        session, truth, first = ours[index], script.truths[index], len(prompts[index])
        accuracy = rng.choice((0.0, 0.6, 0.9, 1.0))
        while not session.over:
            yield env.timeout(rng.uniform(1, 40))
            length = session.line.length
            known = rng.randrange(max(first, length - 3), length + 1)
            start = rng.choice((known, length, length + len(session.line.guesses)))
            guesses = [
                token if rng.random() < accuracy else (token + 1) % 64
                for token in truth[start - first : start - first + rng.randrange(9)]
            ]
            wish = rng.choice((None, None, None, 0, 25)) if session.patience.asked_ms != PATIENCE_UNLIMITED_MS else None
            confidences = [rng.random() for _ in guesses] if rng.random() < 0.8 else []
            draft = Draft(start, guesses, known, env.now, wish, confidences)
            script.drafts.append((env.now, index, draft))
            verifier.draft(session, draft)

    for index, (patience_ms, objective) in enumerate(WISHES):
        prompt, truth = prompts[index], script.truths[index]
        ours.append(Session(prompt, truth, patience_ms, 0.0, tell(index), settings, objective))
        verifier.add(ours[index])
        env.process(device(index))
    env.run(until=60_000)
    assert [session.answer for session in ours] == script.truths
    return script, ours


def play_real(script: Script, settings: VerifierSettings) -> tuple[list[Told], list[RealSession]]:
    """The same drafts at the same times against the product's scheduler, its clock in our hands."""
    now_ms = 0.0
    engine = MockEngine()
    limits = SchedulerSettings(settings.step_tokens, settings.chunk_tokens)
    scheduler = Scheduler(engine, limits, clock=lambda: now_ms / 1e3)
    real = [
        real_session(prompt, i, TOKENS, Patience(patience_ms, objective, settings.max_patience_ms), 0.0)
        for i, (prompt, (patience_ms, objective)) in enumerate(zip(script.prompts, WISHES, strict=True))
    ]
    for session in real:
        session.sent = session.line.length
        scheduler.add(session)
    told: list[Told] = []
    drafts = deque(script.drafts)

    def deliver(until_ms: float) -> None:
        while drafts and drafts[0][0] <= until_ms:
            at_ms, index, draft = drafts.popleft()
            if not real[index].over:
                asks, now_s = draft.patience_ms is None, at_ms / 1e3
                real[index].draft(draft.start, draft.tokens, draft.known_length, draft.confidences, now_s, asks=asks)
                if draft.patience_ms is not None:
                    real[index].patience.asked_ms = draft.patience_ms

    while not all(session.over for session in real):
        deliver(now_ms)
        plan = scheduler._plan()
        if not plan:
            dues = [due * 1e3 for session in real if (due := session.due_s(128)) is not None]
            now_ms = min([*dues, *(at_ms for at_ms, _, _ in list(drafts)[:1])])
            continue
        began_ms = now_ms
        results = scheduler._stepping.step(plan)
        now_ms += STEP_TIME(len(plan), sum(planned.positions for planned in plan))
        deliver(now_ms)
        scheduler._apply(plan, results, began_ms / 1e3, now_ms / 1e3)
        for planned in plan:
            session = planned.session
            start, first = session.sent, session.sent - session.prompt_length
            if session.line.length == start:
                continue
            session.sent = session.line.length
            session.patience.turnaround.sent(session.sent, now_ms)
            queue_ms, budget = session.last_step.queue_us / 1e3, session.draft_budget.tokens
            drafted = sum(session.drafted[first:])
            told.append(Told(real.index(session), now_ms, start, session.line.log[start:], drafted, queue_ms, budget))
    return told, real


@pytest.mark.parametrize(("step_tokens", "chunk_tokens"), [(512, 256), (24, 16), (7, 40), (3, 2)])
@pytest.mark.parametrize("seed", range(6))
def test_the_scheduler_and_its_sessions_do_what_the_simulated_ones_do(
    seed: int, step_tokens: int, chunk_tokens: int
) -> None:
    settings = VerifierSettings(
        STEP_TIME, step_tokens, chunk_tokens, MAX_LOOKAHEAD, max_patience_ms=PATIENCE_UNLIMITED_MS
    )
    script, ours = play_simulated(seed, settings)
    told, real = play_real(script, settings)
    assert [(t.session, t.start, t.tokens, t.drafted, t.budget) for t in told] == [
        (t.session, t.start, t.tokens, t.drafted, t.budget) for t in script.told
    ]
    assert [t.at_ms for t in told] == pytest.approx([t.at_ms for t in script.told])
    assert [t.queue_ms for t in told] == pytest.approx([t.queue_ms for t in script.told], abs=0.01)
    for simulated, session in zip(ours, real, strict=True):
        stats = session.statistics
        assert (simulated.target_forwards, simulated.verified_tokens, simulated.accepted_tokens, simulated.fills) == (
            stats.target_forwards,
            stats.verified_tokens,
            stats.accepted_tokens,
            stats.fills,
        )
        assert simulated.trimmed_tokens == stats.trimmed_tokens
        assert simulated.waited_ms == pytest.approx(stats.waited_us / 1e3, abs=0.1)
    if step_tokens < 10:
        assert sum(session.trimmed_tokens for session in ours) > 0
    assert any(session.waited_ms > 0 for session in ours)
