"""Branches beside a drafter's sequence, looked at in one evaluation: each is as a fresh drafter fed with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.drafters.base import MOST_PATH_TOKENS, Drafter, DrafterError
from edge_client.drafters.llama_cpp.drafter import LlamaCppDrafter
from edge_client.drafters.llama_cpp.twigs import MOST_TOKENS, MOST_TWIGS
from tests.contract.conftest import FORMATS, Case
from tests.contract.test_drafters import assert_close_to_row, assert_same, expected_rows, ids
from tests.contract.tiny_models import CONTEXT_TOKENS

LETTERS = 6  # so few that paths begin alike


@pytest.fixture(scope="module", params=["gguf-f32", "gguf-q8_0"])
def case(request: pytest.FixtureRequest, made: Callable[[str], Path]) -> Case:
    """The formats that have branches."""
    return Case(request.param, FORMATS[request.param], made(request.param))


@pytest.fixture
def branching(drafter: Drafter) -> LlamaCppDrafter:
    assert isinstance(drafter, LlamaCppDrafter)
    return drafter


def assert_follows(case: Case, drafter: Drafter, reference: torch.nn.Module, tokens: list[int]) -> None:
    assert_close_to_row(drafter.candidates(), expected_rows(reference, tokens)[-1], case.format.tolerance)


Branch = st.lists(st.integers(0, LETTERS - 1), min_size=1, max_size=9)
Steps = st.lists(
    st.one_of(
        st.tuples(Branch, st.lists(Branch, max_size=3)),  # feed this, and look at those
        st.tuples(st.floats(0, 1), Branch),  # go back to this share of what is past the log, and on along this
        st.integers(1, 3),  # so much of it becomes the log
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(steps=Steps)
def test_any_branches_are_those_of_a_fresh_drafter(
    case: Case,
    reference: torch.nn.Module,
    steps: list[tuple[list[int], list[list[int]]] | tuple[float, list[int]] | int],
) -> None:
    drafter, held = case.load(), ids(20)
    drafter.feed(held)
    log = len(held)
    try:
        for step in steps:
            if isinstance(step, int):
                log = min(log + step, len(held))
            elif isinstance(step[0], list):
                tokens, paths = step
                found = drafter.feed_beside(tokens, log, paths)
                held = held + tokens
                assert drafter.length == len(held)
                for path, candidates in zip(paths, found, strict=True):
                    row = expected_rows(reference, held[:log] + path)[-1]
                    assert_close_to_row(candidates, row, case.format.tolerance)
            else:
                keep = log + round(step[0] * (len(held) - log))
                drafter.rollback(keep)
                drafter.feed(step[1])
                held = held[:keep] + step[1]
            assert_follows(case, drafter, reference, held)
    finally:
        drafter.close()


def counted(drafter: LlamaCppDrafter, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens llama.cpp evaluates, one entry a call."""
    counts: list[int] = []
    decode = drafter._api.llama_decode

    def counting(context: object, batch: object) -> int:
        counts.append(batch.n_tokens)  # type: ignore[attr-defined]
        return int(decode(context, batch))

    monkeypatch.setattr(drafter._api, "llama_decode", counting)
    return counts


def test_one_evaluation_looks_at_all_ends_and_nothing_is_evaluated_again(
    case: Case, branching: LlamaCppDrafter, reference: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = counted(branching, monkeypatch)
    prompt = ids(40)
    branching.feed(prompt)
    counts.clear()
    branching.feed_beside([1], 40, [[2], [3]])
    branching.feed_beside([1], 40, [[2, 4], [3, 4], [2, 5]])
    assert counts == [3, 4]
    branching.rollback(40)
    branching.feed([2, 4, 7])  # the branch that was left is the sequence now
    assert counts[2:] == [1]
    assert_follows(case, branching, reference, [*prompt, 2, 4, 7])
    branching.rollback(42)
    branching.feed_beside([6], 40, [[2, 4, 7, 8]])  # and what was left of that stays, too
    assert counts[3:] == [2]
    branching.rollback(40)
    branching.feed([1, 1, 9])
    assert counts[4:] == [1]
    assert_follows(case, branching, reference, [*prompt, 1, 1, 9])


def test_branches_at_the_end_of_the_context(case: Case, branching: LlamaCppDrafter, reference: torch.nn.Module) -> None:
    """More of them than there is room for: old ones go, and the sequence never fails for them."""
    log = ids(CONTEXT_TOKENS - MOST_PATH_TOKENS)
    branching.feed(log)
    rng = np.random.default_rng(3)
    held = list(log)
    while len(held) < CONTEXT_TOKENS:
        longest = min(MOST_PATH_TOKENS, CONTEXT_TOKENS - len(log))
        paths = [[int(token) for token in rng.integers(0, 200, longest)] for _ in range(branching.most_tips - 1)]
        found = branching.feed_beside([5], len(log), paths)
        held.append(5)
    for path, candidates in zip(paths, found, strict=True):
        assert_close_to_row(candidates, expected_rows(reference, log + path)[-1], case.format.tolerance)
    assert_follows(case, branching, reference, held)
    with pytest.raises(DrafterError, match="context"):
        branching.feed_beside([5], len(log), [[1]])
    branching.rollback(CONTEXT_TOKENS - 1)
    with pytest.raises(DrafterError, match="context"):
        branching.feed_beside([5], CONTEXT_TOKENS - 1, [[1, 2]])
    assert MOST_PATH_TOKENS * (branching.most_tips - 1) <= MOST_TOKENS
    assert branching.most_tips <= MOST_TWIGS


def test_without_room_what_is_kept_of_branches_goes(
    case: Case, branching: LlamaCppDrafter, reference: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = ids(30)
    branching.feed(log)
    branching.feed_beside([1], 30, [[2], [3]])
    decode, refused = branching._api.llama_decode, list[int]()

    def without_room(context: object, batch: object) -> int:
        if branching._twigs:
            refused.append(1)
            return 1
        return int(decode(context, batch))

    monkeypatch.setattr(branching._api, "llama_decode", without_room)
    branching.feed([2])
    assert refused
    assert_follows(case, branching, reference, [*log, 1, 2])


def test_a_failure_leaves_the_sequence_as_it_was(
    case: Case, branching: LlamaCppDrafter, reference: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = ids(30)
    branching.feed(log)
    branching.feed_beside([1, 2], 30, [[2], [3]])
    with monkeypatch.context() as broken:
        broken.setattr(branching._api, "llama_decode", lambda context, batch: -3)
        with pytest.raises(DrafterError, match="2 branches"):
            branching.feed_beside([1], 30, [[2, 1], [3, 1]])
    assert branching.length == 32
    found = branching.feed_beside([4], 30, [[2, 1]])
    assert_follows(case, branching, reference, [*log, 1, 2, 4])
    assert_close_to_row(found[0], expected_rows(reference, [*log, 2, 1])[-1], case.format.tolerance)


def test_another_conversation_has_none_of_the_branches(
    case: Case, branching: LlamaCppDrafter, reference: torch.nn.Module
) -> None:
    talk, other = ids(120, seed=1), ids(110, seed=2)
    branching.feed(talk)
    branching.feed_beside([1], 120, [[2], [3]])
    branching.rollback(0)
    branching.feed(other)
    branching.feed_beside([1], 110, [[2]])
    branching.rollback(0)  # the first is taken up as a copy
    branching.feed(talk)
    found = branching.feed_beside([1], 120, [[2, 5]])
    assert_follows(case, branching, reference, [*talk, 1])
    assert_close_to_row(found[0], expected_rows(reference, [*talk, 2, 5])[-1], case.format.tolerance)


@pytest.mark.parametrize(
    ("length", "paths", "match"),
    [
        (0, [[1]], "no branches after 0"),
        (9, [[1]], "no branches after 9"),
        (4, [[1]] * 4, "4 branches"),
        (4, [[1] * (MOST_PATH_TOKENS + 1)], f"of up to {MOST_PATH_TOKENS + 1} tokens"),
        (4, [[]], "empty"),
        (4, [[1 << 30]], "outside"),
    ],
)
def test_branches_that_cannot_be_are_refused(
    branching: LlamaCppDrafter, length: int, paths: list[list[int]], match: str
) -> None:
    branching.feed(ids(8))
    before = branching.candidates()
    with pytest.raises(ValueError, match=match):
        branching.feed_beside([1], length, paths)
    assert branching.length == 8
    assert_same(branching.candidates(), before)


def test_without_branches_it_is_a_feed(case: Case, drafter: Drafter) -> None:
    plain = case.load()
    for one in (drafter, plain):
        one.feed(ids(8))
    assert drafter.feed_beside([1], 8, []) == []
    plain.feed([1])
    assert_same(drafter.candidates(), plain.candidates())
    plain.close()


def test_a_drafter_that_looks_at_one_end_says_so(made: Callable[[str], Path]) -> None:
    drafter = Case("onnx-fp32", FORMATS["onnx-fp32"], made("onnx-fp32")).load()
    assert drafter.most_tips == 1
    drafter.feed(ids(8))
    with pytest.raises(ValueError, match="one end at a time"):
        drafter.feed_beside([1], 8, [[2]])
    assert drafter.length == 8
    assert drafter.feed_beside([1], 8, []) == []
    assert drafter.length == 9
    drafter.close()
