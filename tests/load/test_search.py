"""The search for the most sessions held."""

import pytest

from benchmarks.load.search import most_held


@pytest.mark.parametrize("guess", [1, 7, 40, 78])
@pytest.mark.parametrize("truth", [0, 1, 2, 18, 41, 77, 78])
def test_it_finds_the_most_from_any_guess(guess: int, truth: int) -> None:
    tried: list[int] = []

    def held(sessions: int) -> bool:
        tried.append(sessions)
        return sessions <= truth

    assert most_held(held, guess, 78, resolution=0.0) == truth
    assert len(tried) == len(set(tried))
    assert all(1 <= sessions <= 78 for sessions in tried)


def test_a_coarse_search_is_short_and_never_too_high() -> None:
    tried: list[int] = []

    def held(sessions: int) -> bool:
        tried.append(sessions)
        return sessions <= 50

    found = most_held(held, 45, 78, resolution=0.15)
    assert 43 <= found <= 50
    assert len(tried) <= 3
