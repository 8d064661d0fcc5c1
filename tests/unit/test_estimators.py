import random

import pytest

from speculation.estimators import Calibration, Window
from speculation.line import Outcome


def test_a_window_knows_only_its_prior_until_it_is_told() -> None:
    window = Window(4, prior_ms=30)
    assert (window.median_ms, window.spread_ms) == (30, 0)
    for sample in (1, 1, 1, 9):
        window.add(sample)
    assert (window.median_ms, window.spread_ms) == (1, 8)
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
