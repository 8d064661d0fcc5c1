"""Every drafter keeps the contract of `edge_client.drafters.base`, on real files of its format."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from edge_client.drafters.base import Candidates, Drafter, DrafterError
from edge_client.drafters.kv_store import common
from edge_client.drafters.language_model import LanguageModelDrafter
from speculation.vocabulary.vocabulary import fingerprint
from tests.contract.conftest import Case
from tests.contract.tiny_models import CONTEXT_TOKENS

SMALL_IDS = 250  # all formats have more tokens than this
Rows = npt.NDArray[np.float64]


def ids(count: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, SMALL_IDS, count)]


@torch.inference_mode()
def expected_rows(reference: torch.nn.Module, tokens: list[int]) -> Rows:
    """log q after each token by transformers, shape [len(tokens), V]."""
    rows: Rows = reference(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1).numpy()
    return rows


def assert_same(found: Candidates, expected: Candidates) -> None:
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.log_probs, expected.log_probs)


def assert_close_to_row(found: Candidates, row: Rows, tolerance: float) -> None:
    """The candidates' values are the row's, and nothing that was left out is likelier than what was taken."""
    np.testing.assert_allclose(found.log_probs, row[found.ids], atol=tolerance, rtol=0)
    left_out = np.delete(row, found.ids)
    assert row[found.ids].min() >= left_out.max() - 2 * tolerance


# --- candidates -------------------------------------------------------------------------------------------------


def test_candidates_are_those_of_transformers(case: Case, drafter: Drafter, reference: torch.nn.Module) -> None:
    tokens = ids(60)
    for token, row in zip(tokens, expected_rows(reference, tokens), strict=True):
        drafter.feed([token])
        assert_close_to_row(drafter.candidates(), row, case.format.tolerance)


def test_quantized_weights_keep_the_best_tokens(case: Case, drafter: Drafter, reference: torch.nn.Module) -> None:
    tokens = ids(200, seed=1)
    same = []
    for token, row in zip(tokens, expected_rows(reference, tokens), strict=True):
        drafter.feed([token])
        same.append(drafter.candidates().ids[0] == row.argmax())
    assert np.mean(same) > (0.99 if case.format.exact else 0.9)


def test_candidates_are_sorted_and_normalised(case: Case) -> None:
    drafter = case.load(top_candidates=1 << 20)
    drafter.feed(ids(9))
    found = drafter.candidates()
    assert found.ids.dtype == np.int64
    assert found.log_probs.dtype == np.float64
    assert sorted(found.ids) == list(range(drafter.info.vocabulary_size))
    assert (np.diff(found.log_probs) <= 0).all()
    assert np.exp(found.log_probs).sum() == pytest.approx(1.0, abs=1e-5)
    few = case.load(top_candidates=5)
    few.feed(ids(9))
    assert_same(few.candidates(), Candidates(found.ids[:5], found.log_probs[:5]))
    drafter.close()
    few.close()


def test_a_long_feed_is_the_same_as_many_short_ones(case: Case, drafter: Drafter, reference: torch.nn.Module) -> None:
    tokens = ids(CONTEXT_TOKENS - 20, seed=2)  # three chunks
    drafter.feed(tokens)
    assert drafter.length == len(tokens)
    assert_close_to_row(drafter.candidates(), expected_rows(reference, tokens)[-1], case.format.tolerance)


def test_the_same_feeds_give_the_same_bits(case: Case) -> None:
    first, second = case.load(), case.load()
    for count in (300, 1, 1, 17, 1):
        first.feed(ids(count, seed=count))
        second.feed(ids(count, seed=count))
        assert_same(first.candidates(), second.candidates())
    first.close()
    second.close()


def test_candidates_stay_after_the_next_feed(drafter: Drafter) -> None:
    drafter.feed(ids(5))
    kept = drafter.candidates()
    copies = kept.ids.copy(), kept.log_probs.copy()
    drafter.feed([1])
    drafter.candidates()
    assert_same(kept, Candidates(*copies))


# --- rollback ---------------------------------------------------------------------------------------------------


def test_after_a_rollback_it_is_bitwise_a_fresh_drafter(case: Case, drafter: Drafter) -> None:
    fresh = case.load()
    shared, dropped, new = ids(30, seed=3), ids(40, seed=4), ids(6, seed=5)
    for piece in (shared, dropped):
        drafter.feed(piece)
    drafter.rollback(len(shared))
    assert drafter.length == len(shared)
    fresh.feed(shared)
    for token in new:
        drafter.feed([token])
        fresh.feed([token])
        assert_same(drafter.candidates(), fresh.candidates())
    drafter.rollback(0)
    drafter.feed(shared)
    fresh.rollback(len(shared) + 1)
    fresh.rollback(0)
    fresh.feed(shared)
    assert_same(drafter.candidates(), fresh.candidates())
    fresh.close()


Steps = st.lists(
    st.one_of(
        st.lists(st.integers(0, SMALL_IDS - 1), min_size=1, max_size=20),  # feed these
        st.floats(0, 1),  # roll back to this share of the length
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=25)
@given(steps=Steps, last=st.integers(0, SMALL_IDS - 1))
def test_any_feeds_and_rollbacks_end_like_one_feed(
    case: Case, reference: torch.nn.Module, steps: list[list[int] | float], last: int
) -> None:
    drafter, held = case.load(), list[int]()
    for step in steps:
        if isinstance(step, list):
            drafter.feed(step)
            held += step
        else:
            keep = round(step * len(held))
            drafter.rollback(keep)
            del held[keep:]
        assert drafter.length == len(held)
    drafter.feed([last])
    held.append(last)
    found = drafter.candidates()
    drafter.close()
    assert_close_to_row(found, expected_rows(reference, held)[-1], case.format.tolerance)


def counting(drafter: Drafter, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens the runtime evaluates, one entry a call."""
    assert isinstance(drafter, LanguageModelDrafter)
    counts: list[int] = []
    evaluate = drafter._evaluate

    def counted(tokens: Sequence[int], start: int, last: bool) -> npt.NDArray[np.floating] | None:
        counts.append(len(tokens))
        return evaluate(tokens, start, last)

    monkeypatch.setattr(drafter, "_evaluate", counted)
    return counts


def test_a_conversation_that_goes_on_is_not_read_again(
    case: Case, drafter: Drafter, reference: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three by turns, of which two begin alike, fed in pieces as the riding loop does."""
    beginning = ids(90, seed=10)
    talks = [beginning + ids(150, seed=11), beginning + ids(160, seed=12), ids(200, seed=13)]
    counts = counting(drafter, monkeypatch)
    before: list[int] = []
    for turn in range(3):
        for number, talk in enumerate(talks):
            held = common(talk, before)
            drafter.rollback(held)
            counts.clear()
            for first in range(held, len(talk), 64):
                drafter.feed(talk[first : first + 64])
            found = drafter.candidates()
            if turn:
                assert sum(counts) <= 32
            assert_close_to_row(found, expected_rows(reference, talk)[-1], case.format.tolerance)
            before, talks[number] = talk, talk + ids(31, seed=14 + turn)  # the next turn
    drafter.rollback(drafter.length - 3)  # and it is a sequence like any other
    drafter.feed([7, 8])
    rest = [*before[:-3], 7, 8]
    assert_close_to_row(drafter.candidates(), expected_rows(reference, rest)[-1], case.format.tolerance)


def test_what_was_put_aside_and_cannot_be_taken_up_is_read_again(
    case: Case, drafter: Drafter, reference: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(state: object, length: int) -> None:
        raise DrafterError("no")

    talk = ids(200, seed=15)
    drafter.feed(talk)
    drafter.rollback(20)
    monkeypatch.setattr(drafter, "_restore_state", refuse)
    drafter.feed(talk[20:])
    assert_close_to_row(drafter.candidates(), expected_rows(reference, talk)[-1], case.format.tolerance)


def test_a_rollback_that_drops_tokens_forgets_the_candidates(drafter: Drafter) -> None:
    drafter.feed(ids(8))
    before = drafter.candidates()
    drafter.rollback(8)
    assert_same(drafter.candidates(), before)
    drafter.rollback(7)
    with pytest.raises(DrafterError, match="feed"):
        drafter.candidates()


@pytest.mark.parametrize("length", [-1, 9])
def test_a_rollback_to_nowhere_is_refused(drafter: Drafter, length: int) -> None:
    drafter.feed(ids(8))
    before = drafter.candidates()
    with pytest.raises(ValueError, match=f"cannot keep {length} tokens"):
        drafter.rollback(length)
    assert drafter.length == 8
    assert_same(drafter.candidates(), before)


# --- refusals leave everything as it was ------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [-1, "vocabulary_size", 1 << 31, 1 << 40])
@pytest.mark.parametrize("position", [0, 4])
def test_an_id_outside_the_vocabulary_is_refused(case: Case, drafter: Drafter, wrong: int | str, position: int) -> None:
    bad = getattr(drafter.info, wrong) if isinstance(wrong, str) else wrong
    drafter.feed(ids(8))
    before = drafter.candidates()
    tokens = ids(5, seed=6)
    tokens[position] = bad
    with pytest.raises(ValueError, match=f"token id {bad} is outside"):
        drafter.feed(tokens)
    assert drafter.length == 8
    assert_same(drafter.candidates(), before)
    untouched = case.load()
    untouched.feed(ids(8))
    for other in (drafter, untouched):
        other.feed([5])
    assert_same(drafter.candidates(), untouched.candidates())
    untouched.close()


def test_feeding_nothing_is_refused(drafter: Drafter) -> None:
    with pytest.raises(ValueError, match="empty"):
        drafter.feed([])
    assert drafter.length == 0


def test_the_context_ends_where_it_says(case: Case) -> None:
    drafter = case.load(context_tokens=33)
    assert drafter.info.context_tokens == 33
    drafter.feed(ids(32))
    before = drafter.candidates()
    with pytest.raises(DrafterError, match="33 tokens"):
        drafter.feed([1, 2])
    assert drafter.length == 32
    assert_same(drafter.candidates(), before)
    drafter.feed([1])
    with pytest.raises(DrafterError, match="33 tokens"):
        drafter.feed([1])
    drafter.rollback(31)
    drafter.feed([1, 2])
    assert drafter.length == 33
    drafter.close()


def test_candidates_before_any_feed_are_refused(drafter: Drafter) -> None:
    assert drafter.length == 0
    with pytest.raises(DrafterError, match="feed"):
        drafter.candidates()


@pytest.mark.parametrize("setting", ["threads", "top_candidates", "context_tokens"])
def test_settings_below_one_are_refused(case: Case, setting: str) -> None:
    with pytest.raises(DrafterError, match=setting):
        case.load(**{setting: 0})


def test_closing_twice_is_closing_once(case: Case) -> None:
    drafter = case.load()
    drafter.feed([1])
    drafter.close()
    drafter.close()
    with pytest.raises(DrafterError, match="closed"):
        drafter.feed([1])
    with pytest.raises(DrafterError, match="closed"):
        drafter.candidates()


# --- what the device learns about it ----------------------------------------------------------------------------


def test_all_formats_tell_the_same_vocabulary(drafter: Drafter, source: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(source)
    assert drafter.info.vocabulary_fingerprint == fingerprint(
        tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    )


def test_info(case: Case, drafter: Drafter, reference: torch.nn.Module) -> None:
    assert drafter.info.name == case.name
    assert drafter.info.vocabulary_size == expected_rows(reference, [1]).shape[1]
    known_limit = case.name != "onnx-growing"  # this one has no config beside it
    assert drafter.info.context_tokens == CONTEXT_TOKENS or not known_limit


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads the resident size from /proc")
def test_memory_does_not_grow(drafter: Drafter) -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def work(tokens: int) -> None:
        for token in ids(tokens, seed=9):
            if drafter.length == CONTEXT_TOKENS - 1:
                drafter.rollback(100)
            drafter.feed([token])
            drafter.candidates()

    drafter.feed(ids(CONTEXT_TOKENS - 1))
    work(1000)
    before = resident_bytes()
    work(4000)
    # A leaked row of logits per token would be 10 MB, a leaked cache far more.
    assert resident_bytes() - before < 4 << 20
