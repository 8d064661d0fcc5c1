"""A full scheduler, stepped by hand: what a device says of its guesses is worth what it turns out to be worth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from cloud_verifier.engines.base import Sampler
from cloud_verifier.scheduling.patience import Patience
from cloud_verifier.scheduling.scheduler import Scheduler, SchedulerSettings
from cloud_verifier.scheduling.session import Session
from speculation.answer_text import AnswerText
from speculation.sampling import SamplingParams
from speculation.verifier_tree import VerifierTree
from tests.harness import LetterStream
from tests.mock_engine import MockEngine, answer

TOKENS = 400


class Bench:
    """A scheduler and its sessions. prompts: how long each one's is."""

    def __init__(self, sessions: int, step_tokens: int, prompts: Sequence[int] = (2,)) -> None:
        self.now_s = 0.0
        self.scheduler = Scheduler(MockEngine(), SchedulerSettings(step_tokens), clock=lambda: self.now_s)
        contents = [[5] * prompts[seed % len(prompts)] for seed in range(sessions)]
        self.sessions = [
            Session(
                session_id=str(seed),
                sampler=Sampler(SamplingParams(), seed, len(prompt)),
                line=VerifierTree(list(prompt)),
                text=AnswerText(LetterStream(), ()),
                stop_ids=frozenset(),
                max_length=len(prompt) + TOKENS,
                max_lookahead=16,
                patience=Patience(0),
                ready_since_s=0.0,
            )
            for seed, prompt in enumerate(contents)
        ]
        for session in self.sessions:
            self.scheduler.add(session)

    def draft(self, index: int, count: int, confidence: float, *, right: bool = True) -> None:
        """A fresh line from the log's end."""
        session = self.sessions[index]
        length = session.line.length
        guesses = [t if right else t ^ 1 for t in answer(session.line.log, index, count)]
        session.draft(length, guesses, length, [confidence] * len(guesses), self.now_s)

    def step(self) -> list[int]:
        """Guesses checked, by session."""
        before = [session.statistics.verified_tokens for session in self.sessions]
        plan = self.scheduler._plan()
        results = self.scheduler._stepping.step(plan)
        self.now_s += 0.03
        self.scheduler._apply(plan, results, self.now_s - 0.03, self.now_s)
        for session in self.sessions:
            session.sent = session.line.length  # somebody reads
        return [s.statistics.verified_tokens - b for s, b in zip(self.sessions, before, strict=True)]


def test_a_device_that_is_always_certain_and_always_wrong_does_not_grab_the_budget() -> None:
    bench = Bench(sessions=2, step_tokens=10)
    checked = []
    bench.step()
    for _ in range(30):
        bench.draft(0, 8, 1.0, right=False)
        bench.draft(1, 8, 0.6)
        checked.append(bench.step())
    assert checked[0] == [8, 0]  # it is believed, once
    assert all(honest >= 7 for _, honest in checked[10:])
    assert all(liar <= 1 for liar, _ in checked[10:])
    assert bench.sessions[1].line.length > 4 * bench.sessions[0].line.length


def test_a_modest_device_that_is_always_right_is_believed_in_the_end() -> None:
    bench = Bench(sessions=2, step_tokens=10)
    bench.step()
    for _ in range(25):
        bench.draft(0, 8, 0.9, right=False)
        bench.draft(1, 8, 0.0)
        checked = bench.step()
    assert checked[1] >= 7


def test_guesses_go_by_survival_across_sessions() -> None:
    bench = Bench(sessions=3, step_tokens=9)
    bench.step()
    for index, confidence in enumerate((0.2, 0.97, 0.6)):
        bench.draft(index, 5, confidence)
    unsure, sure, middling = bench.step()
    assert sure == 5
    assert unsure + middling == 1
    assert unsure == 0


def test_nothing_is_left_out_where_there_is_room() -> None:
    bench = Bench(sessions=3, step_tokens=18)
    bench.step()
    for index, confidence in enumerate((0.0, 1.0, 0.5)):
        bench.draft(index, 5, confidence)
    assert bench.step() == [5, 5, 5]
    assert all(session.statistics.trimmed_tokens == 0 for session in bench.sessions)
    assert all(session.draft_budget.tokens == 16 for session in bench.sessions)


@pytest.mark.parametrize("step_tokens", [1, 2, 5])
def test_with_more_sessions_than_positions_nobody_starves(step_tokens: int) -> None:
    bench = Bench(sessions=7, step_tokens=step_tokens, prompts=(1, 40, 9))
    for _ in range(60):
        before = [session.cached for session in bench.sessions]
        for _ in range(math.ceil(7 / step_tokens)):
            for index in range(0, 7, 2):
                bench.draft(index, 6, 0.9)
            bench.step()
        assert all(session.cached > was for session, was in zip(bench.sessions, before, strict=True))


def test_every_position_is_counted_by_its_kind() -> None:
    bench = Bench(sessions=2, step_tokens=20, prompts=(4,))
    figures = bench.scheduler.counters
    bench.step()
    assert (figures.steps, figures.prompt_positions, figures.pending_positions) == (1, 8, 0)
    bench.draft(0, 6, 0.9)
    bench.step()
    assert (figures.steps, figures.prompt_positions, figures.pending_positions, figures.draft_positions) == (2, 8, 2, 6)
    assert (figures.sessions_in_step, figures.sessions_waiting, figures.trimmed_draft_tokens) == (2, 0, 0)
    latest = figures.latest
    assert (latest.number, latest.sessions, latest.positions) == (2, 2, 8)
    assert figures.step_s == pytest.approx(0.06)
    assert latest.step_s == pytest.approx(0.03)


def test_an_engine_without_pages_has_none_in_the_figures() -> None:
    bench = Bench(sessions=2, step_tokens=20)
    bench.step()
    figures = bench.scheduler.counters
    assert (figures.pages_total, figures.prefix_query_tokens, figures.prefix_hit_tokens, figures.preemptions) == (
        0,
    ) * 4
