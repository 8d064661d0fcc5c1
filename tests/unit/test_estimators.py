import random

import pytest

from speculation.draft_tree import Outcome
from speculation.pace.estimators import Calibration, TransferTime, Window


def test_a_window_knows_only_its_prior_until_it_is_told() -> None:
    window = Window(4, prior_ms=30)
    assert (window.median_ms, window.least_ms, window.spread_ms, window.measured) == (30, 30, 0, False)
    for sample in (1, 1, 1, 9):
        window.add(sample)
    assert (window.median_ms, window.least_ms, window.spread_ms, window.measured) == (1, 1, 8, True)
    for _ in range(4):
        window.add(5)
    assert (window.median_ms, window.spread_ms) == (5, 0)


def test_calibration_finds_what_a_confidence_is_worth() -> None:
    """A drafter that is far too sure of itself: says 0.95, is right 60 times in 100."""
    calibration, rng = Calibration(), random.Random(1)
    assert calibration.probability(0.95, 0) > 0.85
    for _ in range(300):
        calibration.learn(Outcome(0, 0.95, rng.random() < 0.6))
    assert calibration.probability(0.95, 0) == pytest.approx(0.6, abs=0.12)
    assert calibration.typical == pytest.approx(0.6, abs=0.2)


def test_calibration_tells_depths_apart() -> None:
    calibration, rng = Calibration(), random.Random(2)
    for _ in range(400):
        calibration.learn(Outcome(0, 0.8, rng.random() < 0.6))
        calibration.learn(Outcome(5, 0.8, rng.random() < 0.95))
    assert calibration.at_depth(5) - calibration.at_depth(0) > 0.15
    assert calibration.probability(0.8, 5) > calibration.probability(0.8, 0)


def test_calibration_follows_drift() -> None:
    calibration = Calibration()
    for right in [True] * 200 + [False] * 200:
        calibration.learn(Outcome(1, 0.7, right))
    assert calibration.probability(0.7, 1) < 0.25


def test_the_time_of_a_byte_is_found_behind_jitter_and_stalls() -> None:
    transfer, rng = TransferTime(), random.Random(3)
    for _ in range(48):
        size = rng.randrange(40, 160)
        stall_ms = 200.0 if rng.random() < 0.1 else 0.0
        transfer.add(size, 50 + 0.4 * size + rng.uniform(0, 6) + stall_ms)  # 20 kbps
    assert transfer.ms_per_byte == pytest.approx(0.4, rel=0.25)


def test_messages_of_one_size_say_nothing_of_the_rate() -> None:
    transfer, rng = TransferTime(), random.Random(4)
    for _ in range(48):
        transfer.add(41, rng.uniform(20, 200))
    assert transfer.ms_per_byte == 0


def test_a_fast_link_has_no_time_per_byte_to_speak_of() -> None:
    transfer, rng = TransferTime(), random.Random(5)
    for _ in range(48):
        transfer.add(rng.randrange(40, 160), 50 + rng.uniform(0, 2))
    assert transfer.ms_per_byte < 0.02
