"""The oracle: no policy beats it, and where the best is known it is that."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from netlab.link_settings import LinkSettings
from netlab.simulator import policies
from netlab.simulator.device import DeviceSettings
from netlab.simulator.link import Link
from netlab.simulator.oracle import least_forwards, oracle
from netlab.simulator.pair import MARGIN_TOKENS, Answer, heavy_headed, independent
from netlab.simulator.run import Rider, simulate
from netlab.simulator.verifier import StepTime, VerifierSettings
from netlab.traces import RateTrace, RttTrace
from speculation.pace.adaptive import Adaptive

ROUNDING_MS = 1e-3
NAMES = ("sync", "pipelined", "best-fixed", "server-led", "ucb", "draft-ahead", "confidence", "heuristic")


def link(kind: str, rtt_ms: float, seed: int) -> Link:
    rng = random.Random(seed)
    settings = LinkSettings.of_rtt(rtt_ms, jitter_ms=rtt_ms / 4 if kind == "jitter" else 0.0, seed=seed)
    times = tuple(60.0 * i for i in range(40))
    if kind == "trace":
        trace = RttTrace(times, tuple(rtt_ms * rng.uniform(0.3, 2.0) for _ in times))
        settings = replace(settings, rtt_trace=trace, good_ms=700.0 * (seed % 2), bad_ms=60.0 * (seed % 2))
    elif kind == "rates":
        rates = tuple(rng.choice([0.0, 20.0, 500.0]) for _ in times[1:])
        settings = replace(settings, rate_trace=RateTrace(times, (99.0, *rates), (50.0, *rates)), burst_bytes=200)
        settings = replace(settings, jitter_ms=rtt_ms / 4, jitter_model="pareto", loss=0.01, loss_stall_ms=80)
    elif kind == "outages":
        settings = replace(settings, good_ms=200, bad_ms=50, bad_loss=rng.choice([0.3, 1.0]))
    return Link.of_settings(settings, offset_ms=seed)


@pytest.mark.parametrize("seed", range(40))
def test_no_policy_is_faster_than_the_oracle(seed: int) -> None:
    rng = random.Random(seed)
    draft_ms, step_ms = rng.choice([1, 2, 5, 12, 40]), rng.choice([8, 30, 100])
    rtt_ms, kind = rng.choice([0, 3, 20, 50, 200]), ("constant", "jitter", "trace", "rates", "outages")[seed % 5]
    settings = VerifierSettings(StepTime(step_ms, rng.choice([0.0, 0.0, 1.0])))
    alpha = rng.choice([0.2, 0.5, 0.8, 0.95, 1.0])
    answer = rng.choice([independent, heavy_headed])(alpha).answers(1, 60, seed)[0]
    bounds = {
        width: oracle(answer.within(width), link(kind, rtt_ms, seed), draft_ms, settings)
        for width in (1, Adaptive().width)
    }
    names = [*NAMES, "adaptive"]
    for name in names:
        candidates = list(policies.find(name).candidates.items())
        for candidate, make in rng.sample(candidates, min(12, len(candidates))):
            pace = make()
            best = bounds[pace.width]
            rider = Rider(answer, link(kind, rtt_ms, seed), pace, DeviceSettings(draft_ms))
            result = simulate([rider], settings).results[0]
            assert best.total_ms <= result.total_ms + ROUNDING_MS, candidate
            assert best.ttft_ms <= result.ttft_ms + ROUNDING_MS, candidate
            assert least_forwards(answer.within(pace.width)) <= result.target_forwards, candidate


def test_a_drafter_that_is_never_right_leaves_streaming() -> None:
    bound = oracle(independent(0.0).answers(1, 50, 1)[0], Link.of_rtt(70), 1)
    assert (bound.ttft_ms, bound.total_ms, bound.target_forwards) == (100, 70 + 50 * 30, 50)


def test_a_drafter_slower_than_the_target_leaves_streaming() -> None:
    assert oracle(independent(1.0).answers(1, 50, 1)[0], Link.of_rtt(70), 40).total_ms == 70 + 50 * 30


def test_one_run_of_hits_by_hand() -> None:
    """Three hits, then a miss, at no distance; a guess takes 4 ms and a step 30.

    The prompt's step ends at 30 and gives the first token, which the device guessed meanwhile, with the two that
    follow. So the second step verifies two guesses and writes the missed token too; then one token a step.
    """
    answer = Answer(6, [True, True, True, False, False, False] + [False] * MARGIN_TOKENS, [0.5] * (6 + MARGIN_TOKENS))
    bound = oracle(answer, Link.of_rtt(0), 4)
    assert bound.total_ms == 30 + 30 + 30 + 30
    assert bound.target_forwards == 4
    assert bound.ms_per_token == pytest.approx(90 / 5)


def test_waiting_a_little_beats_filling() -> None:
    """All hits, drafts of 10 ms, steps of 30 and no distance: waiting 10 ms for a fourth guess writes no faster than
    the device drafts, but never slower than either."""
    bound = oracle(independent(1.0).answers(1, 300, 1)[0], Link.of_rtt(0), 10)
    assert bound.ms_per_token == pytest.approx(10, rel=0.02)


def test_the_fewest_forwards() -> None:
    hits = [True, True, False, True, False, True]
    answer = Answer(6, hits + [True] * MARGIN_TOKENS, [0.5] * (6 + MARGIN_TOKENS))
    assert least_forwards(answer) == 4  # the prompt's, to the miss at 2, to the miss at 4, to the end
