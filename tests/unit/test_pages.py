"""Pages of keys and values: whatever sequences do, none is lost, none is written while another may read it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_verifier.engines.base import EngineFull
from cloud_verifier.engines.pages import Pages, Table

SIZE = 4


class StoreError(Exception):
    """What a device raises that is out of memory."""


class Memory:
    """What is in each page: for every place the tokens that it was computed from, as a model's keys depend on them.

    fails: the next call raises, half done.
    """

    def __init__(self, count: int) -> None:
        self.places: list[list[tuple[int, ...] | None]] = [[None] * SIZE for _ in range(count)]
        self.fails = False

    def clear(self, pages: Sequence[int]) -> None:
        for page in pages:
            self.places[page] = [None] * SIZE
            self._may_fail()

    def copy(self, source: int, target: int) -> None:
        self.places[target] = list(self.places[source])
        self._may_fail()

    def _may_fail(self) -> None:
        fails, self.fails = self.fails, False
        if fails:
            raise StoreError


class Bench:
    def __init__(self, count: int) -> None:
        self.memory = Memory(count)
        self.pages = Pages(count, SIZE, self.memory)
        self.open: list[tuple[Table, list[int]]] = []

    def append(self, which: int, tokens: list[int]) -> None:
        table, log = self.open[which]
        before = (len(table.pages), self.pages.available)
        try:
            self.pages.reserve(table, len(tokens))
        except (EngineFull, StoreError):
            assert len(table.pages) == before[0]
            assert self.pages.available >= before[1], "equal pages may have become one, but no room was taken"
            return
        for token in tokens:
            page = table.pages[len(log) // SIZE]
            assert self.pages._holders[page] == 1, "a page that is shared is written"
            assert page not in self.pages._key_of, "a page that others may find is written"
            log.append(token)
            self.memory.places[page][(len(log) - 1) % SIZE] = tuple(log)
        self.pages.extend(table, tokens)

    def check(self) -> None:
        pages = self.pages
        holders = Counter(page for table, _ in self.open for page in table.pages)
        assert all(pages._holders[page] == holders[page] for page in range(pages.count))
        states = [*pages._free.pages, *pages._cached, *holders]
        assert sorted(states) == list(range(pages.count)), "a page is lost, or in two states"
        memory = pages.memory
        assert (memory.used, memory.cached, memory.free) == (len(holders), len(pages._cached), len(pages._free))
        assert {page: key for key, page in pages._known.items()} == pages._key_of
        for before, _ in pages._known:
            assert isinstance(before, str) or before in pages._key_of, "known by a page that is gone"
        for table, log in self.open:
            assert table.tokens == log
            for at in range(len(log)):
                assert self.memory.places[table.pages[at // SIZE]][at % SIZE] == tuple(log[: at + 1])


actions = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9), st.integers(0, 2**32)), max_size=60)


@settings(max_examples=250)
@given(st.integers(2, 14), actions)
def test_any_life_of_sequences_keeps_the_laws(count: int, lives: list[tuple[int, int, int]]) -> None:
    bench = Bench(count)
    for action, which, seed in lives:
        chance = random.Random(seed)
        if action == 0 or not bench.open:
            prompt = [chance.randrange(2) for _ in range(chance.randrange(15))]  # two tokens: beginnings often agree
            table = bench.pages.open(prompt)
            had = len(table.tokens)
            assert had % SIZE == 0
            assert had < max(1, len(prompt))
            bench.open.append((table, list(table.tokens)))
            bench.append(-1, prompt[had:])
        elif action in (1, 2):
            bench.append(which % len(bench.open), [chance.randrange(2) for _ in range(1 + chance.randrange(7))])
        elif action == 3:
            table, log = bench.open[which % len(bench.open)]
            length = chance.randrange(len(log) + 1)
            bench.pages.truncate(table, length)
            del log[length:]
        elif action == 4:
            table, _ = bench.open.pop(which % len(bench.open))
            bench.pages.close(table)
        elif action == 5:
            bench.pages.reserve(bench.open[which % len(bench.open)][0], 0)
        else:
            bench.memory.fails = True
        bench.check()
    for table, _ in bench.open:
        bench.pages.close(table)
    bench.open.clear()
    bench.check()
    assert bench.pages.available == count
    bench.pages.forget()
    bench.check()
    assert bench.pages.memory.free == count


@pytest.mark.parametrize("shared", [False, True], ids=["cleared", "copied"])
def test_no_page_is_lost_when_the_store_raises(shared: bool) -> None:
    memory = Memory(8)
    pages = Pages(8, SIZE, memory)
    table = pages.open()
    pages.reserve(table, 2 * SIZE)
    pages.extend(table, [1] * 2 * SIZE)
    if shared:  # a sequence that goes back into a known page has to copy it
        pages.reserve(table, 0)
        pages.truncate(table, SIZE + 1)
    held, available = list(table.pages), pages.available
    for _ in range(3):
        memory.fails = True
        with pytest.raises(StoreError):
            pages.reserve(table, 3 * SIZE)
        assert (table.pages, pages.available) == (held, available)
    pages.reserve(table, 3 * SIZE)
    pages.close(table)
    assert pages.available == 8


def test_what_was_cached_longest_goes_first_and_a_chain_from_its_end() -> None:
    pages = Pages(4, SIZE)
    for first in (1, 2):
        table = pages.open()
        pages.reserve(table, 8)
        pages.extend(table, [first] * 8)
        pages.close(table)
    assert pages.memory.cached == 4
    other = pages.open()
    pages.reserve(other, 4)
    assert len(pages.open([1] * 9).pages) == 1, "the end of the older chain is gone, its beginning is there"
    assert len(pages.open([2] * 9).pages) == 2


def test_equal_hashes_are_not_equal_tokens() -> None:
    """-1 and -2 have one hash in Python: pages are known by their tokens, not by a hash of them."""
    assert hash((-1,) * SIZE) == hash((-2,) * SIZE)
    pages = Pages(4, SIZE)
    table = pages.open()
    pages.reserve(table, SIZE)
    pages.extend(table, [-1] * SIZE)
    pages.close(table)
    assert not pages.open([-2] * 9).tokens
    assert pages.open([-1] * 9).tokens == [-1] * SIZE


def test_scopes_share_nothing() -> None:
    pages = Pages(4, SIZE)
    table = pages.open([5] * 9, "alice")
    pages.reserve(table, 9)
    pages.extend(table, [5] * 9)
    pages.close(table)
    assert pages.open([5] * 9, "bob").tokens == []
    assert len(pages.open([5] * 9, "alice").tokens) == 2 * SIZE
    memory = pages.memory
    assert (memory.prefix_query_tokens, memory.prefix_hit_tokens) == (27, 8)


def test_sequences_that_turn_out_equal_share_their_pages() -> None:
    pages = Pages(8, SIZE)
    tables = [pages.open([3] * 10) for _ in range(2)]
    for table in tables:
        pages.reserve(table, 10)
        pages.extend(table, [3] * 10)
    assert pages.memory.used == 6
    for table in tables:
        pages.reserve(table, 1)
    assert pages.memory.used == 4


def test_too_little_room_is_said_in_pages() -> None:
    pages = Pages(2, SIZE)
    with pytest.raises(EngineFull, match="3 pages of 4 tokens are needed and 2 of 2 can be had"):
        pages.reserve(pages.open(), 9)


def test_sequences_that_grow_side_by_side_lie_in_one_piece_each() -> None:
    pages = Pages(64, SIZE)
    tables = [pages.open() for _ in range(4)]
    for _ in range(8):
        for number, table in enumerate(tables):
            pages.reserve(table, 2 * SIZE)
            pages.extend(table, [number] * (2 * SIZE))
    for table in tables:
        assert table.pages == list(range(table.pages[0], table.pages[0] + 16))
    assert pages.available == 0
    for table in tables[::-1]:
        pages.truncate(table, SIZE)
    assert pages.available == 60
    assert sorted(page for _ in range(60) for page in pages.fork(tables[0], SIZE, 2 * SIZE)) == sorted(
        set(range(64)) - {table.pages[0] for table in tables}
    )
