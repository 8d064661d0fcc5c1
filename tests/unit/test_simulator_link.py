"""Simulated links and traces of round-trip times."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from netlab.link_settings import LinkSettings
from netlab.simulator.link import Link
from netlab.traces import RttTrace


def test_a_round_trip_is_half_each_way() -> None:
    link = Link.of_rtt(80)
    assert (link.up.arrival_ms(10, 100), link.down.arrival_ms(20, 100)) == (50, 60)
    assert (link.up.messages, link.up.bytes) == (1, 100)


def test_a_rate_makes_messages_wait_for_each_other() -> None:
    way = Link.of_settings(LinkSettings(delay_up_ms=10, up_kbps=80)).up  # 100 bytes take 10 ms
    assert [way.arrival_ms(0, 100), way.arrival_ms(5, 100), way.arrival_ms(100, 100)] == [20, 30, 120]


def test_jitter_never_reorders_and_depends_on_the_seed() -> None:
    def arrivals(seed: int) -> list[float]:
        way = Link.of_rtt(20, jitter_ms=50, seed=seed).up
        return [way.arrival_ms(float(t), 40) for t in range(0, 400, 7)]

    assert arrivals(1) == arrivals(1) == sorted(arrivals(1))
    assert arrivals(1) != arrivals(2)
    assert all(t + 10 <= arrival <= t + 60 for t, arrival in zip(range(0, 400, 7), arrivals(1), strict=True))


def test_a_trace_holds_each_value_until_the_next_and_repeats() -> None:
    settings = LinkSettings(rtt_trace=RttTrace((0, 100, 200), (20, 60, 10)))
    delay = Link.of_settings(settings).up.delay
    assert [delay.delay_ms(t) for t in (0, 99, 100, 250, 300, 410)] == [10, 10, 30, 5, 10, 30]
    assert Link.of_settings(settings, offset_ms=100).up.delay.delay_ms(0) == 30
    assert Link.of_settings(replace(settings, offset_ms=150), offset_ms=100).up.delay.delay_ms(0) == 5


@pytest.mark.parametrize("seed", range(6))
def test_the_earliest_arrival_is_what_trying_every_moment_finds(seed: int) -> None:
    rng = random.Random(seed)
    times = tuple(10.0 * i for i in range(20))
    settings = LinkSettings(rtt_trace=RttTrace(times, tuple(rng.uniform(0, 300) for _ in times)), offset_ms=33)
    if seed >= 3:
        settings = replace(settings, good_ms=40, bad_ms=15)
    way = Link.of_settings(settings, seed=seed).up.delay
    for now in (0.0, 17.5, 42.0, 180.0, 199.0):
        moments = (way.passes_ms(now + later / 100) for later in range(20_000))
        found = min(moment + way.delay_ms(moment) for moment in moments)
        assert way.earliest_ms(now) == pytest.approx(found, abs=0.02)
        assert way.earliest_ms(now) <= found + 1e-9
