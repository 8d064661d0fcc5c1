"""How many guesses a device is told to have on its line."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cloud_verifier.scheduling.draft_budget import DraftBudget


def test_an_idle_verifier_wants_all_it_can_get() -> None:
    budget = DraftBudget(64)
    assert budget.tokens == 64
    for lead in range(30):
        budget.heard(lead)
        budget.stepped(5, 0, full=False)
        assert budget.tokens == 64


def test_a_busy_verifier_wants_what_it_can_check_past_what_is_spent_on_the_way() -> None:
    budget = DraftBudget(64)
    for _ in range(100):
        budget.heard(6)
        budget.stepped(7, 20, full=True)
    assert budget.tokens == 6 + 7 + 1  # the share nears 7 from above
    budget.stepped(12, 1, full=True)
    assert budget.tokens == 6 + 12


def test_a_device_whose_guesses_are_never_checked_may_still_guess_a_little() -> None:
    budget = DraftBudget(64)
    for _ in range(100):
        budget.heard(0)
        budget.stepped(0, 9, full=True)
    assert budget.tokens == DraftBudget.FLOOR
    assert DraftBudget(1).tokens == 1


def test_a_full_step_that_left_nothing_out_says_nothing() -> None:
    budget = DraftBudget(64)
    budget.stepped(4, 60, full=True)
    before = budget.tokens
    budget.stepped(4, 0, full=True)
    assert budget.tokens == before


def test_it_comes_back_when_the_rush_is_over() -> None:
    budget = DraftBudget(64)
    for _ in range(100):
        budget.stepped(0, 9, full=True)
    for _ in range(100):
        budget.stepped(1, 0, full=False)
    assert budget.tokens == 64


steps = st.lists(st.tuples(st.integers(0, 64), st.integers(0, 64), st.booleans(), st.integers(0, 30)), max_size=60)


@given(steps, st.integers(1, 64))
def test_it_never_leaves_its_bounds_nor_jumps(story: list[tuple[int, int, bool, int]], most: int) -> None:
    budget = DraftBudget(most)
    told = [budget.tokens]
    for checked, left_out, full, lead in story:
        budget.stepped(min(checked, most), left_out, full=full)
        budget.heard(lead)
        told.append(budget.tokens)
    assert all(min(most, DraftBudget.FLOOR) <= tokens <= most for tokens in told)
    assert all(abs(after - before) <= 0.25 * (most + 30) + 1 for before, after in pairwise(told))
