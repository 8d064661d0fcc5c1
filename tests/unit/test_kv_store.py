"""Conversations put aside: which is found, which goes first, and that they stay within their bytes."""

from __future__ import annotations

from edge_client.drafters.kv_store import Conversations, Kept, common

LONG = 40


def kept(first: int, length: int = LONG, size_bytes: int = 10) -> Kept:
    return Kept(list(range(first, first + length)), object(), size_bytes)


def test_the_one_that_shares_most_is_found() -> None:
    aside, short, long = Conversations(100), kept(0, 30), kept(0)
    other = Kept([*long.tokens[:25], *range(500, 540)], object(), 10)
    for one in (short, long, other):
        aside.put(one)
    assert aside.find([], long.tokens, 0) is long
    assert aside.find(long.tokens[:20], long.tokens[20:], 0) is long
    assert aside.find([], [*long.tokens[:25], *range(500, 520)], 0) is other
    assert aside.find(long.tokens[:20], long.tokens[20:], 10) is None  # too little more than what is known
    assert aside.find([7], long.tokens, 0) is None
    assert aside.find(long.tokens[:39], long.tokens[39:], 0) is None


def test_one_takes_the_place_of_its_beginnings() -> None:
    aside = Conversations(100)
    aside.put(kept(0, 30))
    assert aside.has(kept(0, 30).tokens)
    aside.put(longer := kept(0))
    assert aside.has(kept(0, 30).tokens)
    assert aside.find([], longer.tokens, 0) is longer
    aside.forget(longer)
    assert not aside.has(kept(0, 30).tokens)


def test_what_was_used_longest_ago_goes_first() -> None:
    aside, ones = Conversations(30), [kept(100 * number) for number in range(3)]
    for one in ones:
        aside.put(one)
    assert aside.find([], ones[0].tokens, 0) is ones[0]
    aside.put(kept(1000, size_bytes=11))
    assert [aside.has(one.tokens) for one in ones] == [True, False, False]
    aside.put(kept(2000, size_bytes=31))  # more than there is room for in all
    assert aside.has(ones[0].tokens)
    assert not aside.has(kept(2000).tokens)


def test_common() -> None:
    assert [common([1, 2, 3], other) for other in ([], [2], [1, 2], [1, 2, 4, 5], [1, 2, 3, 4])] == [0, 0, 2, 2, 3]
