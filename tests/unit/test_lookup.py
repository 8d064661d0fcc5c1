"""Lookups against brute force: what followed the longest match, and how often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.drafters.lookup.ngram import NgramDrafter
from edge_client.drafters.lookup.suffix_array import SuffixArray
from speculation.lookup import MAX_MATCH_TOKENS, MAX_MATCHES, MIN_MATCH_TOKENS, Match, blend

Tokens = st.lists(st.integers(0, 3), max_size=60)  # few ids, so that there is much to find
Documents = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=25), max_size=6)


def alike(before: Sequence[int], context: Sequence[int]) -> int:
    """How many tokens both end with, at most MAX_MATCH_TOKENS."""
    length = 0
    while length < min(len(before), len(context), MAX_MATCH_TOKENS) and before[-1 - length] == context[-1 - length]:
        length += 1
    return length


def brute_force(documents: Sequence[Sequence[int]], context: Sequence[int]) -> list[Match]:
    found = [
        Match(alike(document[:place], context), document[place])
        for document in documents
        for place in range(1, len(document))
    ]
    return [match for match in found if match.length >= MIN_MATCH_TOKENS]


@given(documents=Documents, context=Tokens)
def test_a_suffix_array_finds_what_brute_force_finds(documents: list[list[int]], context: list[int]) -> None:
    found = list(SuffixArray(documents).matches(context))
    everything = brute_force(documents, context)
    if len(everything) <= MAX_MATCHES // 2:
        assert sorted(found) == sorted(everything)
    lengths = sorted((match.length for match in everything), reverse=True)
    assert [match.length for match in found] == lengths[: len(found)]


def test_matches_longer_than_the_longest_are_all_alike() -> None:
    text = list(range(200))
    array = SuffixArray([text, [7, *text], text[100:]])
    assert list(array.matches(text[:150])) == [Match(MAX_MATCH_TOKENS, 150)] * 3
    assert list(array.matches([5, 3])) == []
    assert list(SuffixArray([]).matches([1, 2, 3])) == []


def test_the_widest_ids_are_no_separators() -> None:
    wide = (1 << 31) - 1
    assert list(SuffixArray([[wide, wide, wide, 0]]).matches([wide] * 3)) == [Match(3, 0), Match(2, wide)]


@given(tokens=st.lists(st.integers(0, 2), min_size=1, max_size=80))
def test_ngram_finds_what_brute_force_finds(tokens: list[int]) -> None:
    drafter = NgramDrafter()
    drafter.feed(tokens)
    latest = brute_force([tokens], tokens)[-MAX_MATCHES:]
    expected, found = blend(latest, 16), drafter.candidates()
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.log_probs, expected.log_probs)


@given(matches=st.lists(st.tuples(st.integers(2, 32), st.integers(0, 5)), max_size=40))
def test_a_blend_is_a_part_of_a_distribution(matches: list[tuple[int, int]]) -> None:
    found = blend([Match(*match) for match in matches], 16)
    assert set(found.ids) == {token for _, token in matches}
    assert (np.diff(found.log_probs) <= 0).all()
    assert np.exp(found.log_probs).sum() <= 1.0 + 1e-12
    few = blend([Match(*match) for match in matches], 2)
    np.testing.assert_array_equal(few.ids, found.ids[:2])


def test_longer_matches_and_more_of_them_are_surer() -> None:
    def sure(*matches: tuple[int, int]) -> float:
        return float(np.exp(blend([Match(*match) for match in matches], 1).log_probs[0]))

    assert sure((2, 7)) < sure((4, 7)) < sure((16, 7)) < 1.0
    assert sure((4, 7)) < sure((4, 7), (4, 7)) < sure((4, 7), (4, 7), (4, 7))
    assert sure((4, 7), (4, 8)) < sure((4, 7)) < sure((8, 7), (2, 7))
    assert blend([Match(9, 1), Match(3, 2)], 2).ids.tolist() == [1, 2]
    assert sure((2, 5)) == pytest.approx(0.45)
