"""What a way of riding is said to cost, against what it costs in the simulator."""

from dataclasses import replace

import numpy as np
import pytest

from netlab.simulator.device import DeviceSettings
from netlab.simulator.link import Link
from netlab.simulator.pair import SHARES, independent
from netlab.simulator.run import Rider, simulate
from netlab.simulator.verifier import StepTime, VerifierSettings
from speculation.pace.base import BoundedLookahead, Pace, Pipelined
from speculation.pace.plan import Conditions, Plans, survival_curve, tree_curves
from speculation.pace.tree_rounds import BestFirst


def conditions(alpha: float, draft_ms: float, step_ms: float, rtt_ms: float) -> Conditions:
    return Conditions(rtt_ms, step_ms, draft_ms, survival_curve([alpha] * 64))


def played(alpha: float, draft_ms: float, step_ms: float, rtt_ms: float, pace: type[Pace]) -> tuple[float, float]:
    """Milliseconds and target forwards per token."""
    time_ms = forwards = tokens = 0.0
    for answer in independent(alpha).answers(8, 200, seed=3):
        rider = Rider(answer, Link.of_rtt(rtt_ms), pace(), DeviceSettings(draft_ms))
        result = simulate([rider], VerifierSettings(StepTime(step_ms))).results[0]
        time_ms += result.total_ms - result.ttft_ms
        forwards += result.target_forwards
        tokens += result.tokens
    return time_ms / tokens, forwards / tokens


@pytest.mark.parametrize(
    ("alpha", "draft_ms", "step_ms", "rtt_ms"),
    [(0.7, 5, 30, 20), (0.85, 5, 30, 50), (0.85, 2, 30, 200), (0.95, 12, 100, 100), (0.9, 5, 8, 20)],
)
def test_a_verifier_that_never_waits(alpha: float, draft_ms: float, step_ms: float, rtt_ms: float) -> None:
    plans = Plans.under(conditions(alpha, draft_ms, step_ms, rtt_ms), (), 0.0)
    time_ms, forwards = played(alpha, draft_ms, step_ms, rtt_ms, BoundedLookahead)
    assert plans.patience_ms.tolist() == [0.0]
    assert plans.ms_per_token[0] == pytest.approx(time_ms, rel=0.15)
    assert plans.forwards_per_token[0] == pytest.approx(forwards, rel=0.15)


@pytest.mark.parametrize(
    ("alpha", "draft_ms", "step_ms", "rtt_ms"),
    [(0.7, 5, 30, 20), (0.85, 5, 30, 50), (0.85, 2, 30, 200), (0.95, 12, 100, 100), (0.9, 5, 8, 20)],
)
def test_a_verifier_that_waits_for_blocks(alpha: float, draft_ms: float, step_ms: float, rtt_ms: float) -> None:
    class Blocks(Pipelined):
        def __init__(self) -> None:
            super().__init__(48, 8)

    plans = Plans.under(conditions(alpha, draft_ms, step_ms, rtt_ms), (8,), 0.0)
    without_fills = int(np.flatnonzero((plans.patience_ms > 0) & (plans.fills == 0))[0])
    time_ms, forwards = played(alpha, draft_ms, step_ms, rtt_ms, Blocks)
    assert plans.ms_per_token[without_fills] == pytest.approx(time_ms, rel=0.15)
    assert plans.forwards_per_token[without_fills] == pytest.approx(forwards, rel=0.15)


def test_a_drafter_that_is_never_ahead_of_the_log_leaves_plain_streaming() -> None:
    plans = Plans.under(conditions(0.9, 40, 30, 200), (), 0.0)
    assert (plans.ms_per_token[0], plans.forwards_per_token[0]) == (30, 1)


def test_fewer_fills_cost_time_and_save_forwards() -> None:
    plans = Plans.under(conditions(0.85, 5, 30, 100), (16,), 0.0)
    order = np.argsort(plans.fills[1:]) + 1
    assert plans.fills[order].tolist() == list(range(len(order)))
    assert np.all(np.diff(plans.forwards_per_token[order]) > 0)
    assert np.all(np.diff(plans.ms_per_token[order]) < 0)


@pytest.mark.parametrize(("alpha", "draws"), [(0.7, 4), (0.7, 16), (0.85, 8), (0.85, 32)])
def test_blocks_of_trees(alpha: float, draws: int) -> None:
    """Rounds of trees with two guesses at every place, against a drafter that is as sure everywhere."""
    second = (1 - alpha) * SHARES[0]
    tokens = forwards = 0
    for answer in independent(alpha, informativeness=0.0).answers(8, 200, seed=3):
        pace = BestFirst(2 * draws, least=0.0, width=2)
        rider = Rider(answer, Link.of_rtt(20), pace, DeviceSettings(0.5))
        result = simulate([rider], VerifierSettings(StepTime(30.0))).results[0]
        forwards += result.target_forwards
        tokens += result.tokens
    now = replace(conditions(alpha, 0.5, 30, 20), second=second)
    curve, of_more = tree_curves(now, [draws, 4 * draws])
    assert curve.tokens + 1 == pytest.approx(tokens / forwards, rel=0.1)
    assert np.all(np.diff(curve.survivals) <= 0)
    assert np.all(of_more.survivals >= curve.survivals - 1e-9)
    assert of_more.tokens > curve.tokens
    assert of_more.passes < curve.passes


def test_a_tree_without_second_guesses_is_a_line() -> None:
    now = conditions(0.8, 1, 30, 20)
    [curve] = tree_curves(now, [5])
    assert curve.survivals == pytest.approx(now.survivals)
    assert curve.tokens == pytest.approx(sum(0.8**depth for depth in range(1, 6)))
    assert curve.passes == pytest.approx(0.8**5)
    line, tree = Plans.under(now, (24,), 0.0), Plans.under(replace(now, second=1e-12), (24,), 0.0)
    assert tree.forwards_per_token == pytest.approx(line.forwards_per_token, rel=0.1)
    assert tree.ms_per_token == pytest.approx(line.ms_per_token, rel=0.1)


def test_a_tree_saves_forwards_over_a_line() -> None:
    line = conditions(0.8, 1, 30, 20)
    of_line, of_tree = (Plans.under(now, (48,), 0.0) for now in (line, replace(line, second=0.1)))
    assert of_tree.forwards_per_token.min() < 0.9 * of_line.forwards_per_token.min()
