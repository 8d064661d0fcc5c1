"""Who gets how much of a step: laws that hold for any company; in small ones, against a search of all allocations."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from cloud_verifier.scheduling.token_budget import Want, allocate

Line = list[float]


def want(pending: int, line: Sequence[float]) -> Want:
    return Want(pending, len(line), lambda: list(itertools.accumulate(line, operator.mul)))


pendings = st.one_of(st.just(1), st.integers(1, 40))
lines = st.lists(st.floats(0.001, 0.999), max_size=8)
companies = st.lists(st.tuples(pendings, lines), min_size=1, max_size=12)


@given(companies, st.integers(1, 120), st.integers(1, 30))
def test_nobody_gets_what_it_cannot_use_and_nothing_is_wasted(
    company: list[tuple[int, Line]], room: int, chunk: int
) -> None:
    given_ = allocate([want(*one) for one in company], room, chunk)
    usable = [p + len(line) for p, line in company]
    assert all(0 <= positions <= most for positions, most in zip(given_, usable, strict=True))
    served = company[:room]
    read = sum(min(positions, p) - 1 for positions, (p, _) in zip(given_, served, strict=False))
    assert read == min(chunk, sum(p - 1 for p, _ in served))
    lines_ = [len(line) if positions >= p else 0 for positions, (p, line) in zip(given_, served, strict=False)]
    guesses = sum(max(0, positions - p) for positions, (p, _) in zip(given_, served, strict=False))
    assert guesses == min(room - len(served), sum(lines_))


@given(companies, st.integers(1, 120), st.integers(1, 30))
def test_those_who_waited_longest_get_their_position_first(
    company: list[tuple[int, Line]], room: int, chunk: int
) -> None:
    given_ = allocate([want(*one) for one in company], room, chunk)
    served = min(room, len(company))
    assert all(given_[:served])
    assert not any(given_[served:])


@given(companies, st.integers(1, 120), st.integers(1, 30))
def test_a_step_is_longer_by_one_chunk_at_most_and_prompts_take_nothing_from_guesses(
    company: list[tuple[int, Line]], room: int, chunk: int
) -> None:
    given_ = allocate([want(*one) for one in company], room, chunk)
    assert sum(given_) <= room + chunk
    without = allocate([want(1, line if p == 1 else []) for p, line in company], room, chunk)
    for (p, _), positions, before in zip(company, given_, without, strict=True):
        if p == 1 and not any(other > q > 1 for other, (q, _) in zip(given_, company, strict=True)):
            assert positions == before


@given(st.lists(st.integers(2, 400), min_size=2, max_size=8), st.integers(8, 64))
def test_a_short_prompt_is_read_in_its_share_of_the_steps_whatever_is_read_beside_it(
    prompts: list[int], chunk: int
) -> None:
    left, steps, ended = list(prompts), 0, {}
    while any(left):
        steps += 1
        going = [i for i, tokens in enumerate(left) if tokens]
        for i, positions in zip(going, allocate([want(left[i], []) for i in going], 64, chunk), strict=True):
            left[i] -= positions
            if not left[i]:
                ended[i] = steps
    for i, tokens in enumerate(prompts):
        assert ended[i] <= math.ceil(tokens / (1 + chunk // len(prompts)))


@given(st.lists(lines, min_size=1, max_size=4), st.integers(1, 12))
def test_no_other_allocation_hopes_for_more_tokens(company: list[Line], room: int) -> None:
    def hoped(line: Line, guesses: int) -> float:
        return sum(math.prod(line[: i + 1]) for i in range(guesses))

    given_ = allocate([want(1, line) for line in company], room, 256)
    left = room - len(company)
    if left < 0:
        return
    ours = sum(hoped(line, positions - 1) for line, positions in zip(company, given_, strict=True))
    every = itertools.product(*(range(len(line) + 1) for line in company))
    best = max(
        sum(hoped(line, guesses) for line, guesses in zip(company, split, strict=True))
        for split in every
        if sum(split) <= left
    )
    assert math.isclose(ours, best, abs_tol=1e-9)


def test_survivals_are_not_looked_at_where_there_is_room_for_all() -> None:
    def never() -> list[float]:
        raise AssertionError("not needed")

    assert allocate([Want(1, 5, never), Want(30, 4, never), Want(9, 0, never)], 64, 16) == [6, 9, 9]


def test_likely_guesses_go_before_unlikely_ones_whoever_they_belong_to() -> None:
    company = [want(1, [0.5, 0.5, 0.5]), want(1, [0.9, 0.9, 0.1])]
    assert allocate(company, 4, 256) == [1, 3]
    assert allocate(company, 5, 256) == [2, 3]
    assert allocate(company, 6, 256) == [3, 3]


@given(st.integers(1, 6), st.lists(st.tuples(st.integers(1, 30), lines), min_size=2, max_size=15))
def test_nobody_starves(room: int, company: list[tuple[int, Line]]) -> None:
    """However full the steps are, everybody is served once in as many steps as it takes to serve each one once."""
    waiting = list(range(len(company)))  # longest first
    unserved_steps = [0] * len(company)
    for _ in range(60):
        given_ = allocate([want(*company[i]) for i in waiting], room, 16)
        served = [i for i, positions in zip(waiting, given_, strict=True) if positions]
        waiting = [i for i in waiting if i not in served] + served
        for i in range(len(company)):
            unserved_steps[i] = 0 if i in served else unserved_steps[i] + 1
        assert max(unserved_steps) < math.ceil(len(company) / room)
