"""The model of a link's direction, which relay and simulator share: what is drawn, and what may never happen."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netlab import jitter
from netlab.link_settings import LinkSettings
from netlab.outages import Outages
from netlab.simulator.link import Direction, Link
from netlab.traces import RateTrace, RttTrace
from netlab.way import Stream, Way

ROUNDING_MS = 1e-6
RTTS = RttTrace((0, 40, 90, 200), (30, 80, 0, 45))
RATES = RateTrace((0, 50, 80, 300), (100, 0, 20, 4000), (0, 300, 50, 1))


@st.composite
def behaviours(draw: st.DrawFn) -> LinkSettings:
    return LinkSettings(
        delay_up_ms=draw(st.floats(0, 300)),
        jitter_ms=draw(st.sampled_from([0.0, 5.0, 200.0])),
        jitter_model=draw(st.sampled_from(list(jitter.MODELS))),
        up_kbps=draw(st.sampled_from([0.0, 16.0, 1000.0])),
        burst_bytes=draw(st.sampled_from([0, 100, 5000])),
        loss=draw(st.sampled_from([0.0, 0.3])),
        good_ms=100,
        bad_ms=30,
        bad_loss=draw(st.sampled_from([0.0, 0.5, 1.0])),
        rtt_trace=draw(st.sampled_from([None, RTTS])),
        rate_trace=draw(st.sampled_from([None, RATES])),
        offset_ms=draw(st.floats(0, 1000)),
        seed=draw(st.integers(0, 1000)),
    )


messages = st.lists(st.tuples(st.floats(0, 100), st.integers(1, 4000)), min_size=1, max_size=25)


@settings(max_examples=200)
@given(behaviours(), messages)
def test_nothing_is_early_nothing_overtakes_and_all_follows_from_the_seed(
    behaviour: LinkSettings, sent: list[tuple[float, int]]
) -> None:
    def arrivals(link: Link) -> list[float]:
        now_ms, times = 0.0, []
        for gap_ms, size in sent:
            now_ms += gap_ms
            earliest_ms = link.up.delay.earliest_ms(now_ms)
            times.append(link.up.arrival_ms(now_ms, size))
            assert times[-1] >= earliest_ms - ROUNDING_MS
            assert earliest_ms >= now_ms
            assert behaviour.rtt_trace or times[-1] >= now_ms + behaviour.delay_up_ms - ROUNDING_MS
        assert link.up.bytes == sum(size for _, size in sent)
        return times

    times = arrivals(Link.of_settings(behaviour))
    assert all(a < b for a, b in pairwise(times))
    assert times == arrivals(Link.of_settings(LinkSettings.of_dict(behaviour.as_dict())))
    assert times == arrivals(Link.of_settings(replace(behaviour, seed=5), seed=behaviour.seed))


@given(behaviours(), st.floats(0, 1e5), st.integers(0, 300_000))
def test_pieces_are_the_whole(behaviour: LinkSettings, now_ms: float, size: int) -> None:
    way = Way(behaviour, Outages(0, 0, 0), up=True)
    pieces = list(way.pieces(now_ms, size))
    assert sum(pieces) == size
    assert all(piece > 0 for piece in pieces)


@given(st.integers(0, 5000), messages)
def test_a_token_bucket_lets_no_more_pass_than_burst_and_rate(burst: int, sent: list[tuple[float, int]]) -> None:
    rate = 100.0  # bytes per ms
    way = Way(LinkSettings(up_kbps=rate * 8, burst_bytes=burst), Outages(0, 0, 0), up=True)
    now_ms, left = 0.0, []
    for gap_ms, size in sent:
        now_ms += gap_ms
        left.append((way.leaves_ms(now_ms, size), size))
    for first, (begin_ms, first_size) in enumerate(left):  # from any departure on, those after it
        passed = 0
        for left_ms, size in left[first + 1 :]:
            passed += size
            assert passed <= burst + rate * (left_ms - begin_ms) + 1e-6
        assert first_size <= burst + rate * begin_ms + 1e-6
    alone = Way(LinkSettings(up_kbps=rate * 8), Outages(0, 0, 0), up=True)
    now_ms = 0.0
    for (gap_ms, size), (left_ms, _) in zip(sent, left, strict=True):
        now_ms += gap_ms
        assert left_ms <= alone.leaves_ms(now_ms, size) + 1e-6  # a bucket never slows down


def test_a_burst_passes_at_once_and_the_rest_at_the_rate() -> None:
    way = Way(LinkSettings(up_kbps=80, burst_bytes=300), Outages(0, 0, 0), up=True)  # 10 bytes a ms
    assert [way.leaves_ms(0, 200), way.leaves_ms(0, 200), way.leaves_ms(0, 50)] == [0, 10, 15]
    assert [way.leaves_ms(35, 200), way.leaves_ms(1000, 300), way.leaves_ms(1000, 10)] == [35, 1000, 1001]


def test_a_trace_of_rates_is_served_second_by_second() -> None:
    trace = RateTrace((0, 100, 200), (80, 0, 800), (8, 8, 8))  # 10, 0, 100 bytes a ms; then again
    way = Way(LinkSettings(rate_trace=trace), Outages(0, 0, 0), up=True)
    assert way.leaves_ms(0, 500) == 50
    assert way.leaves_ms(90, 100) == 90 + 10
    assert way.leaves_ms(110, 1000) == 210
    assert way.leaves_ms(210, 9000) == 300
    assert way.leaves_ms(290, 10) == 301
    assert (way.passes_ms(50), way.passes_ms(150), way.passes_ms(420)) == (50, 200, 500)
    assert Way(LinkSettings(rate_trace=trace), Outages(0, 0, 0), up=False).leaves_ms(0, 100) == 100


@pytest.mark.parametrize("burst_bytes", [0, 3000])
def test_the_long_run_rate_is_that_of_the_link_while_it_is_up(burst_bytes: int) -> None:
    behaviour = LinkSettings(up_kbps=800, good_ms=900, bad_ms=100, burst_bytes=burst_bytes)
    way = Way(behaviour, Outages(900, 100, 4), up=True)
    total = 4000 * 25_000
    for _ in range(4000):
        left_ms = way.leaves_ms(0, 25_000)
    assert total / left_ms == pytest.approx(100 * (1 - behaviour.outage_share), rel=0.03)


@pytest.mark.parametrize(("good_ms", "bad_ms"), [(900.0, 100.0), (50.0, 200.0)])
def test_outages_have_the_share_and_the_lengths_that_were_asked_for(good_ms: float, bad_ms: float) -> None:
    outages = Outages(good_ms, bad_ms, 11)
    now_ms, stays = 0.0, {True: [0.0], False: [0.0]}
    for _ in range(8000):
        bad, until_ms = outages.at(now_ms)
        stays[bad].append(until_ms - now_ms)
        now_ms = until_ms
    assert sum(stays[True]) / now_ms == pytest.approx(bad_ms / (good_ms + bad_ms), rel=0.05)
    for bad, mean_ms in ((True, bad_ms), (False, good_ms)):
        assert statistics.mean(stays[bad]) == pytest.approx(mean_ms, rel=0.05)
        assert statistics.stdev(stays[bad]) == pytest.approx(mean_ms, rel=0.05)  # exponential
    begins_bad = statistics.mean(Outages(good_ms, bad_ms, seed).at(0)[0] for seed in range(2000))
    assert begins_bad == pytest.approx(bad_ms / (good_ms + bad_ms), abs=0.04)


def test_outages_do_not_depend_on_when_they_are_asked_for() -> None:
    times = [7.0 * i for i in range(500)]
    forward, anyhow = Outages(40, 20, 3), Outages(40, 20, 3)
    expected = {time: forward.at(time) for time in times}
    random.Random(1).shuffle(times)
    assert {time: anyhow.at(time) for time in times} == expected
    assert Outages(0, 0, 3).at(1e9) == (False, float("inf"))


def test_nothing_leaves_during_an_outage_and_all_at_its_end() -> None:
    behaviour = LinkSettings(good_ms=100, bad_ms=50)
    outages = Outages(100, 50, 2)
    way = Way(behaviour, outages, up=True)
    for now_ms in range(0, 3000, 5):
        bad, until_ms = outages.at(now_ms)
        assert way.leaves_ms(now_ms, 60) == (until_ms if bad else now_ms)


def test_in_a_lossy_outage_so_many_packets_stall_and_outside_none() -> None:
    behaviour = LinkSettings(good_ms=1000, bad_ms=1000, bad_loss=0.4, loss_stall_ms=7)
    outages = Outages(1000, 1000, 6)
    stream = Stream(Way(behaviour, outages, up=True), 1)
    stalled: dict[bool, list[bool]] = {True: [], False: []}
    for now_ms in range(0, 100_000, 20):
        stream.begin_burst()
        stalled[outages.at(now_ms)[0]].append(stream.arrival_ms(now_ms, 100) > now_ms)
    assert not any(stalled[False])
    assert statistics.mean(stalled[True]) == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize("model", jitter.MODELS)
def test_every_model_of_jitter_has_the_mean_of_the_uniform_one(model: str) -> None:
    quantile = jitter.MODELS[model]
    draws = [quantile((i + 0.5) / 200_000) for i in range(200_000)]
    assert statistics.fmean(draws) == pytest.approx(0.5, rel=0.005)
    assert draws == sorted(draws)
    assert quantile(0.0) >= 0
    assert quantile(1 - 2**-53) < 1e7
    tail = {"uniform": 0.99 / 0.5, "normal": 2.0, "lognormal": 6.2, "pareto": 8.0}[model]
    assert quantile(0.99) / 0.5 == pytest.approx(tail, rel=0.02)


def test_the_simulated_link_is_the_first_connection_of_the_live_one() -> None:
    behaviour = LinkSettings(delay_up_ms=4, jitter_ms=30, jitter_model="pareto", up_kbps=90, loss=0.2, seed=8)
    live = Stream(Way(behaviour, Outages(0, 0, 8), up=True), 1)
    simulated = Link.of_settings(behaviour).up
    for now_ms in range(0, 2000, 17):
        live.begin_burst()
        assert simulated.arrival_ms(now_ms, 80) == pytest.approx(live.arrival_ms(now_ms, 80))
    other = Stream(Way(behaviour, Outages(0, 0, 8), up=True), 2)
    other.begin_burst()
    assert other.arrival_ms(0, 80) != Direction(Way(behaviour, Outages(0, 0, 8), up=True), 8).arrival_ms(0, 80)


def test_a_bounded_queue_says_when_it_has_room() -> None:
    way = Way(LinkSettings(up_kbps=80, queue_ms=40), Outages(0, 0, 0), up=True)
    assert way.room_ms() < 0
    way.leaves_ms(0, 1000)  # 100 ms of it
    assert way.room_ms() == 60
    assert Way(LinkSettings(up_kbps=80), Outages(0, 0, 0), up=True).room_ms() < 0
