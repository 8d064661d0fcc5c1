"""Trials, simulated and over real sockets: the words, the acceptance, and what is counted."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks.load.answers import described, jobs
from benchmarks.load.outcome import Goal, outcome
from benchmarks.load.profile import MemoryBound
from benchmarks.load.seat import Notes, Seat, pace_of
from benchmarks.load.simulated import Setting, trial
from benchmarks.load.target import WrittenTarget
from benchmarks.load.wire import WallClock, WirePort
from benchmarks.soak.slope import slope
from netlab.simulator.device import DeviceSettings
from netlab.simulator.link import Link
from tests.harness import InProcessVerifier, LetterCodec

SHORT = Setting(MemoryBound(10.0, 0.1, 0.2), rtt_ms=20.0, draft_ms=2.0, warm_ms=500.0, watch_ms=3000.0)


class NumberCodec(LetterCodec):
    """A text for every id."""

    def stream(self, before: Sequence[int] = ()) -> Any:
        return NumberStream()


class NumberStream:
    def push(self, token: int) -> str:
        return f"{token} "

    def rest(self) -> str:
        return ""


def test_simulated_sessions_get_the_targets_words_with_the_acceptance_asked_for() -> None:
    found = trial("latency", 6, SHORT)
    assert found.wrong_words == 0
    assert found.answers > 6
    assert found.acceptance == pytest.approx(0.8, abs=0.08)
    assert found.tokens_per_forward > 1.3
    assert found.tpot_p50 <= found.tpot_p95


def test_streaming_takes_a_step_per_token() -> None:
    found = trial("streaming", 6, SHORT)
    assert found.tokens_per_forward == 1.0
    assert found.tpot_p95 == pytest.approx(found.step_ms, rel=0.02)
    assert found.step_ms == pytest.approx(SHORT.profile(6, 6), rel=0.02)
    assert found.held(Goal(found.tpot_p95, 1000.0))
    assert not found.held(Goal(found.tpot_p95 - 0.1, 1000.0))
    assert not found.held(Goal(found.tpot_p95, 1.0))


def test_a_session_that_got_nothing_waited_all_the_time() -> None:
    busy = Notes(0.0, arrivals=[(100.0 + 10 * i, 1) for i in range(20)])
    found = outcome("latency", [[busy], []], (100.0, 300.0), 1.0, 10.0)
    assert found.tpot_p50 == pytest.approx((10 + 200) / 2)
    with pytest.raises(ValueError, match="no token came"):
        outcome("latency", [[], []], (0.0, 1.0), 1.0, 10.0)


def test_a_session_is_timed_from_the_first_to_the_last_token_that_was_watched() -> None:
    notes = Notes(0.0, arrivals=[(50.0, 1), (100.0, 3), (130.0, 2), (190.0, 4), (400.0, 1)])
    found = outcome("latency", [[notes]], (90.0, 300.0), 1.0, 10.0)
    assert found.tpot_p50 == pytest.approx((190 - 100) / 6)
    assert found.tokens_per_forward == 3.0


def test_growth_is_told_from_noise() -> None:
    at_s = [10.0 * i for i in range(120)]
    noise = [(7919 * i % 13) / 13 for i in range(120)]
    assert slope(at_s, [300 + n for n in noise]).flat(8.0)
    leaking = slope(at_s, [300 + n + at / 3600 * 60 for n, at in zip(noise, at_s, strict=True)])
    assert not leaking.flat(8.0)
    assert leaking.per_hour == pytest.approx(60, abs=3)


@pytest.mark.parametrize("mode", ["streaming", "latency", "capacity"])
def test_over_real_sockets_the_words_are_the_targets_own(mode: str) -> None:
    written = described(4)
    engine = WrittenTarget(written, MemoryBound(2.0, 0.01, 0.01), vocabulary_size=4096, max_sequences=8)

    async def play(address: str) -> list[Notes]:
        clock = WallClock(1.0)
        port = WirePort(clock, address, 3)
        each = ((jobs(written, 0.8, str(index)), Link.of_rtt(4.0, seed=index)) for index in range(3))
        seats = [Seat(clock.env, port, link, pace_of(mode), todo, DeviceSettings(0.5), 0.0) for todo, link in each]
        try:
            clock.happen(lambda: None)
            while any(len(seat.notes) < 2 for seat in seats):  # until each has begun a second answer
                await asyncio.wait({clock.failed}, timeout=0.05)
                if clock.failed.done():
                    clock.failed.result()
        finally:
            clock.stop()
            await port.close()
        return [seat.notes[0] for seat in seats]

    with InProcessVerifier(engine, NumberCodec()) as verifier:
        notes = asyncio.run(play(verifier.address))
    assert all(one.same_words for one in notes)
    assert all(one.right <= one.decided for one in notes)
    assert (sum(one.right for one in notes) > 0) == (mode != "streaming")
    assert engine.work.positions >= engine.work.blocks >= engine.work.steps
