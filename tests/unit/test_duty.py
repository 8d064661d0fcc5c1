"""The duty cycle under a clock of our own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculation.pace.duty import DutyCycle


@given(
    share=st.floats(0.01, 1.0),
    days=st.lists(st.tuples(st.floats(0.1, 300.0), st.floats(0.0, 50.0)), min_size=1, max_size=60),
)
def test_no_more_than_its_share_is_ever_spent(share: float, days: list[tuple[float, float]]) -> None:
    duty, now_ms, drafted_ms = DutyCycle(share), 1000.0, 0.0
    for draft_ms, idle_ms in days:
        now_ms += idle_ms
        wait_ms = duty.wait_ms(now_ms)
        assert wait_ms >= 0.0
        now_ms += wait_ms * 1.0001  # woken when told, and there is something to spend
        assert duty.wait_ms(now_ms) == 0.0
        assert drafted_ms <= duty.burst_ms + share * (now_ms - 1000.0) + 1e-6
        duty.spend(now_ms, now_ms + draft_ms)
        now_ms += draft_ms
        drafted_ms += draft_ms


def test_in_the_long_run_it_uses_what_it_may() -> None:
    duty, now_ms, drafted_ms = DutyCycle(0.25, burst_ms=100.0), 0.0, 0.0
    while now_ms < 60_000.0:
        if wait_ms := duty.wait_ms(now_ms):
            now_ms += wait_ms
            continue
        duty.spend(now_ms, now_ms + 7.0)
        now_ms, drafted_ms = now_ms + 7.0, drafted_ms + 7.0
    assert drafted_ms / now_ms == pytest.approx(0.25, rel=0.02)


def test_it_shuts_when_empty_and_opens_for_more_than_one_token() -> None:
    duty = DutyCycle(0.5, burst_ms=10.0, resume_ms=4.0)
    assert duty.wait_ms(0.0) == 0.0
    duty.spend(0.0, 22.0)  # overdrawn by 2 ms: 22 taken, 10 there, 11 came meanwhile, of which 10 are kept
    assert duty.wait_ms(22.0) == pytest.approx(32.0)
    assert duty.wait_ms(50.0) == pytest.approx(4.0)
    assert duty.wait_ms(54.0) == 0.0
    duty.spend(54.0, 55.0)
    assert duty.wait_ms(55.0) == 0.0


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        DutyCycle(share)
