"""How long a session waits, how long a device takes, and how busy an engine is."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_verifier.scheduling.load import Load
from cloud_verifier.scheduling.patience import Patience
from cloud_verifier.scheduling.turnaround import Turnaround
from speculation.pace.base import PATIENCE_UNLIMITED_MS, Objective

# -- turnaround -------------------------------------------------------------------------------------------------------


def test_a_turnaround_ends_with_the_first_draft_that_knows_the_commit() -> None:
    turnaround = Turnaround()
    assert turnaround.late_ms == 0
    turnaround.sent(10, 100.0)
    turnaround.sent(11, 130.0)  # under way: not timed
    turnaround.came(9, 140.0)  # drawn before the device had heard
    assert turnaround.late_ms == 0
    turnaround.came(11, 180.0)
    assert turnaround.late_ms == 80
    turnaround.came(11, 500.0)  # nothing is awaited
    assert turnaround.late_ms == 80


def test_a_cut_link_is_no_slow_device() -> None:
    turnaround = Turnaround()
    turnaround.sent(10, 0.0)
    turnaround.forget()
    turnaround.came(10, 90_000.0)
    assert turnaround.late_ms == 0
    turnaround.sent(12, 90_000.0)
    turnaround.came(12, 90_040.0)
    assert turnaround.late_ms == 40


def test_a_turnaround_is_careful_but_not_fooled_by_a_rest() -> None:
    turnaround = Turnaround()
    for length, took_ms in enumerate([50, 50, 50, 50, 70, 50, 50, 50, 70, 50, 50]):
        turnaround.sent(length, 1000.0 * length)
        turnaround.came(length, 1000.0 * length + took_ms)
    assert turnaround.late_ms == 70
    turnaround.sent(99, 0.0)
    turnaround.came(99, 60_000.0)
    turnaround.sent(100, 0.0)
    turnaround.came(100, 60_000.0)
    assert turnaround.late_ms == 100  # twice the median


# -- load -------------------------------------------------------------------------------------------------------------


def test_an_idle_engine_has_no_load_and_a_full_one_is_saturated() -> None:
    load = Load()
    assert load.share == 0
    for step in range(300):
        load.stepped(1.0, 30.0 * step, 30.0 * step + 30)
    assert load.share == pytest.approx(1.0, abs=0.01)
    load.stepped(0.5, 20_000.0, 20_030.0)  # long after
    assert load.share < 0.02


def test_time_between_steps_counts_as_idle() -> None:
    load = Load()
    for step in range(600):
        load.stepped(0.8, 30.0 * step, 30.0 * step + 15)
    assert load.share == pytest.approx(0.4, abs=0.02)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1e5), st.floats(0, 1e5)), max_size=30))
def test_a_load_is_a_share(story: list[tuple[float, float, float]]) -> None:
    load, now_ms = Load(), 0.0
    for used, idle_ms, step_ms in story:
        load.stepped(used, now_ms + idle_ms, now_ms + idle_ms + step_ms)
        now_ms += idle_ms + step_ms
        assert 0 <= load.share <= 1


# -- patience ---------------------------------------------------------------------------------------------------------


def measured(patience: Patience, turnaround_ms: float = 80.0) -> Patience:
    patience.turnaround.sent(1, 0.0)
    patience.turnaround.came(1, turnaround_ms)
    return patience


@pytest.mark.parametrize("objective", Objective)
@pytest.mark.parametrize(
    ("asked_ms", "cap_ms", "granted_ms"),
    [
        (0, PATIENCE_UNLIMITED_MS, 0),
        (30, PATIENCE_UNLIMITED_MS, 30),
        (PATIENCE_UNLIMITED_MS, PATIENCE_UNLIMITED_MS, PATIENCE_UNLIMITED_MS),
        (30, 20, 20),
        (PATIENCE_UNLIMITED_MS, 20, 20),
        (PATIENCE_UNLIMITED_MS, 0, 0),
    ],
)
def test_what_a_device_asks_for_is_granted_up_to_the_cap(
    objective: Objective, asked_ms: int, cap_ms: int, granted_ms: int
) -> None:
    assert measured(Patience(asked_ms, objective, cap_ms)).ms == granted_ms


@pytest.mark.parametrize(
    ("objective", "load", "waits"),
    [
        (Objective.LATENCY, 1.0, 0),
        (Objective.BALANCED, 0.0, 0),
        (Objective.BALANCED, 0.25, 10),
        (Objective.BALANCED, 0.75, 30),
        (Objective.BALANCED, 1.0, 40),
        (Objective.CAPACITY, 0.0, 40),
    ],
)
def test_left_to_the_verifier_patience_goes_by_objective_and_load(
    objective: Objective, load: float, waits: int
) -> None:
    patience = measured(Patience(None, objective))
    patience.load = load
    granted_ms = []
    for _ in range(40):
        patience.wrote(3, 2)
        granted_ms.append(patience.ms)
    assert granted_ms.count(80) == waits
    assert granted_ms.count(0) == 40 - waits


def test_a_device_that_was_never_heard_is_not_waited_for() -> None:
    assert Patience(None, Objective.CAPACITY).ms == 0


def test_nor_is_the_cap_exceeded_for_a_slow_one() -> None:
    assert measured(Patience(None, Objective.CAPACITY, 25)).ms == 25
    assert measured(Patience(None, Objective.CAPACITY), 9e6).ms == Patience.MOST_LED_MS


def test_a_device_whose_guesses_are_of_no_use_is_waited_for_ever_less_often() -> None:
    patience = measured(Patience(None, Objective.CAPACITY))
    waited = []
    for token in range(200):
        waited += [token] * bool(patience.ms)
        patience.wrote(1, 0)
    assert waited == [0, 1, 2, 4, 8, 16, 32, 64, 128]
    patience.wrote(3, 2)
    assert patience.ms == 80


@given(st.integers(0, 5000))
def test_waits_for_nothing_are_few(tokens: int) -> None:
    patience = measured(Patience(None, Objective.CAPACITY))
    waits = 0
    for _ in range(tokens):
        waits += patience.ms > 0
        patience.wrote(1, 0)
    assert waits <= math.log2(tokens + 1) + 2
