"""A small plan of `python -m benchmarks.chaos`, with every kind of fault; and that it can tell right from wrong."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.chaos.devices import Tally
from benchmarks.chaos.plan import BOUNDARIES, WEIGHTS, Fault, plan
from benchmarks.chaos.run import Answers, Run

SEED = 3


def one_of_each() -> list[Fault]:
    """Of every kind the first in the plan, and as many boundaries as kinds, in the plan's order."""
    planned, seen = plan(SEED, 400), Counter[str]()
    return [
        fault
        for fault in planned
        if seen.update([fault.kind]) is None and seen[fault.kind] <= (len(WEIGHTS) if fault.kind == "boundary" else 1)
    ]


def test_every_session_ends_with_the_very_words_and_nothing_is_left() -> None:
    faults = one_of_each()
    run = Run("mock", 6, SEED, on_fault=lambda _: None)
    run.carry_out(faults)
    assert run.problems == []
    assert run.done == Counter(fault.kind for fault in faults)
    assert set(run.done) == set(WEIGHTS)
    assert run.tally.outcomes["whole"] > 0
    assert run.tally.outcomes["mended"] > 0, "after an exception for its input an answer goes on by itself"
    assert run.starts == 3
    assert run.left
    assert not any(run.left.values())


def test_words_of_another_target_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run("mock", 1, SEED, on_fault=lambda _: None)
    right = run._expected

    def wrong() -> Answers:
        return {seed: [(question, tokens[:-1]) for question, tokens in answers] for seed, answers in right().items()}

    monkeypatch.setattr(run, "_expected", wrong)
    run.carry_out([Fault("cut", after_tokens=30)])
    assert run.tally.outcomes["wrong"] > 0
    assert any("not (" in problem for problem in run.problems)


def test_a_seed_is_a_plan_and_a_long_one_has_every_boundary() -> None:
    assert plan(1, 1000) == plan(1, 1000) != plan(2, 1000)
    assert {fault.boundary for fault in plan(1, 1000)} - {None} == set(BOUNDARIES)


def test_waiting_for_words_ends_without_them() -> None:
    tally = Tally()
    assert not tally.wait_for(1, timeout_s=0.01)
    assert tally.wait_for(0, timeout_s=0.01)
