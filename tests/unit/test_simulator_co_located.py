"""Speculation beside the target in the simulator: plain streaming without guesses, arithmetic with them."""

from __future__ import annotations

import random

import pytest

from netlab.simulator.co_located import LENGTHS, co_located
from netlab.simulator.link import Link
from netlab.simulator.pair import MARGIN_TOKENS, Answer, independent
from netlab.simulator.run import Rider, simulate
from netlab.simulator.sweep import Grid, GridError, sweep
from netlab.simulator.verifier import StepTime, VerifierSettings
from speculation.pace.base import Streaming

SETTINGS = VerifierSettings(StepTime(30.0, 0.1))


def test_without_guesses_it_streams() -> None:
    answer = independent(0.8).answers(1, 64, 3)[0]
    for rtt_ms in (0.0, 60.0):
        [streaming] = simulate([Rider(answer, Link.of_rtt(rtt_ms), Streaming())], SETTINGS).results
        ours = co_located(answer, Link.of_rtt(rtt_ms), 5.0, 0, SETTINGS)
        assert (ours.tokens, ours.target_forwards) == (streaming.tokens, streaming.target_forwards)
        assert ours.total_ms == pytest.approx(streaming.total_ms)
        assert ours.ttft_ms == pytest.approx(streaming.ttft_ms)


def test_each_step_takes_the_guesses_up_to_the_first_wrong_one() -> None:
    hits = [False, True, True, False, True, True, True, True, False]
    answer = Answer(9, [*hits, *[True] * MARGIN_TOKENS], [0.8] * (9 + MARGIN_TOKENS))
    ours = co_located(answer, Link.of_rtt(0.0), 2.0, 3, SETTINGS, prompt_tokens=1)
    # 0 | 1 2 3 | 4 5 6 7 | 8: the last guess would be past the end
    assert ours.target_forwards == 4
    prompt, whole, last = 30.1, 3 * 2.0 + 30.4, 30.1
    assert ours.busy_ms == pytest.approx(prompt + 2 * whole + last)
    assert ours.total_ms == pytest.approx(ours.busy_ms)


def test_a_round_trip_is_paid_once() -> None:
    answer = independent(0.8).answers(1, 64, random.Random(2).randrange(99))[0]
    for length in LENGTHS:
        near, far = (co_located(answer, Link.of_rtt(rtt_ms), 2.0, length, SETTINGS) for rtt_ms in (0.0, 200.0))
        assert far.total_ms == pytest.approx(near.total_ms + 200)


def test_a_sweep_shows_the_best_length() -> None:
    grid = Grid([independent(0.8)], [50.0], [2.0], policies=["co-located", "streaming"], answers=4, tokens=48)
    ours, streaming = sweep(grid)
    assert ours.candidate in {f"co-located:{length}" for length in LENGTHS}
    assert ours.ms_per_token < 0.6 * streaming.ms_per_token
    assert ours.as_json()["target_forwards_per_token"] < 0.5
    with pytest.raises(GridError, match="one answer at a time"):
        Grid([independent(0.8)], policies=["co-located"], devices=2)
