"""Pages of keys and values: which sequence holds which, which may be shared, which may be had. Integers only.

A page keeps `page_tokens` consecutive positions of a sequence. It is *free*, *held* by one or more sequences, or
*cached*: held by none, but kept, for a sequence may come that begins with the same tokens. What was cached longest
goes first when a page is needed.

A page that is full becomes *known* by the page before it and by its own tokens, compared one by one: whoever finds it
so has the same tokens from the beginning, so the same keys and values. A known page is never written again; a sequence
that goes back into the middle of one and writes on gets a copy. Whoever holds a known page holds the one before it, so
of a chain the last is given up first, and no page is ever known by one that is gone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Protocol

from cloud_verifier.engines.base import EngineFull, Memory

PAGE_TOKENS = 64  # strict attention of the torch engine reads keys in multiples of it

Key = tuple[int | str, tuple[int, ...]]  # the page before, or the scope of a first one; the tokens


class Store(Protocol):
    """Where the keys and values of pages are."""

    def clear(self, pages: Sequence[int]) -> None:
        """Zero these pages: they may hold anything, even NaNs of another sequence."""

    def copy(self, source: int, target: int) -> None:
        """Copy all of a page."""


@dataclass(eq=False)
class Table:
    """One sequence: the tokens evaluated, and the pages that hold them, or are to hold what comes.

    scope: sequences share pages with those of their own scope only. known: so many of the first pages are known.
    """

    scope: str
    tokens: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    known: int = 0


class Pages:
    """All pages of one engine, numbered from 0."""

    def __init__(self, count: int, page_tokens: int, store: Store | None = None) -> None:
        """store: is told what to do to pages; None if there is nothing in them."""
        self.count, self.page_tokens, self._store = count, page_tokens, store
        self._free = _FreePages(count)
        self._cached: OrderedDict[int, None] = OrderedDict()  # longest first
        self._holders = [0] * count
        self._known: dict[Key, int] = {}
        self._key_of: dict[int, Key] = {}
        self._query_tokens = self._hit_tokens = 0

    @property
    def available(self) -> int:
        """Pages that can be had."""
        return len(self._free) + len(self._cached)

    @property
    def memory(self) -> Memory:
        """How many pages are what, and what sharing has brought."""
        free, cached = len(self._free), len(self._cached)
        return Memory(self.count - free - cached, cached, free, self._query_tokens, self._hit_tokens)

    def open(self, tokens: Sequence[int] = (), scope: str = "") -> Table:
        """A sequence that is to begin with these tokens; it has those already that known pages hold, never all."""
        table, size = Table(scope), self.page_tokens
        for first in range(0, len(tokens) - size, size):
            part = tuple(tokens[first : first + size])
            page = self._known.get((table.pages[-1] if table.pages else scope, part))
            if page is None:
                break
            self._hold(page)
            table.pages.append(page)
            table.tokens += part
        table.known = len(table.pages)
        self._query_tokens += len(tokens)
        self._hit_tokens += len(table.tokens)
        return table

    def reserve(self, table: Table, more: int) -> None:
        """Make sure that so many tokens more can be written.

        Raises EngineFull, and what the store raises. After any error no room was taken.
        """
        self._learn(table)
        length, size = len(table.tokens), self.page_tokens
        missing = max(0, -(-(length + more) // size) - len(table.pages))
        at = length // size
        copied = more > 0 and length % size > 0 and table.pages[at] in self._key_of
        if missing + copied > self.available:
            raise EngineFull(
                f"{missing + copied} pages of {size} tokens are needed and {self.available} of {self.count} can be "
                "had; raise the memory for keys and values"
            )
        before = table.pages[:at] if copied else table.pages
        fresh: list[int] = []
        for _ in range(copied + missing):
            last = fresh[-1:] or before[-1:]
            fresh.append(self._take(last[0] if last else None))
        added = fresh[copied:]
        try:
            if self._store is not None:
                if copied:
                    self._store.copy(table.pages[at], fresh[0])
                if added:
                    self._store.clear(added)
        except BaseException:
            for page in reversed(fresh):
                self._release(page)
            raise
        if copied:
            self._release(table.pages[at])
            table.pages[at] = fresh[0]
        table.pages += added

    def extend(self, table: Table, tokens: Sequence[int]) -> None:
        """These tokens were written; there was room for them."""
        table.tokens += tokens
        assert len(table.tokens) <= len(table.pages) * self.page_tokens

    def fork(self, table: Table, at: int, end: int) -> list[int]:
        """Pages for positions at .. end - 1 of a text that parts from the sequence's there, from the page of `at` on,
        which gets a copy of what the sequence has in it.

        The caller gives them back with `give_back` or hands them to `adopt`. Raises EngineFull, and what the store
        raises; then none was taken.
        """
        size = self.page_tokens
        first, count = at // size, -(-end // size) - at // size
        if count > self.available:
            raise EngineFull(
                f"{count} pages of {size} tokens are needed and {self.available} of {self.count} can be had; raise the "
                "memory for keys and values"
            )
        fresh = [self._take() for _ in range(count)]
        try:
            if self._store is not None:
                copied = first * size < len(table.tokens)
                if copied:
                    self._store.copy(table.pages[first], fresh[0])
                if fresh[copied:]:
                    self._store.clear(fresh[copied:])
        except BaseException:
            self.give_back(fresh)
            raise
        return fresh

    def give_back(self, pages: Sequence[int]) -> None:
        """Of `fork`."""
        for page in reversed(pages):
            self._release(page)

    def adopt(self, table: Table, pages: Sequence[int], length: int, tokens: Sequence[int]) -> None:
        """The sequence has these pages now, some of which are its own or come from `fork`; its first `length` tokens
        stay and these follow."""
        for page in pages:
            self._hold(page)
        parts_at = next((i for i, (a, b) in enumerate(zip(table.pages, pages, strict=False)) if a != b), len(pages))
        for page in reversed(table.pages):
            self._release(page)
        table.pages[:] = pages
        del table.tokens[length:]
        table.tokens += tokens
        table.known = min(table.known, parts_at)

    def truncate(self, table: Table, length: int) -> None:
        """Keep the first `length` tokens."""
        del table.tokens[length:]
        kept = -(-length // self.page_tokens)
        for page in reversed(table.pages[kept:]):
            self._release(page)
        del table.pages[kept:]
        table.known = min(table.known, length // self.page_tokens)

    def close(self, table: Table) -> None:
        """The sequence ends; what it knows stays as long as nobody needs the room."""
        self._learn(table)
        self.truncate(table, 0)

    def forget(self, kept: int = 0) -> list[int]:
        """Give up what is cached, the longest first, but for so many pages; returns those given up."""
        gone = []
        while len(self._cached) > kept:
            gone.append(self._oldest())
        for page in gone:
            self._free.add(page)
        return gone

    def _learn(self, table: Table) -> None:
        """Make full pages known. Not at once when they fill: guesses at their end may yet be taken back."""
        size = self.page_tokens
        while (table.known + 1) * size <= len(table.tokens):
            at = table.known
            before = table.pages[at - 1] if at else table.scope
            key = (before, tuple(table.tokens[at * size : (at + 1) * size]))
            page, same = table.pages[at], self._known.get(key)
            if same is None:
                self._known[key], self._key_of[page] = page, key
            elif same != page:  # another sequence was first: one of the two is enough
                self._hold(same)
                table.pages[at] = same
                self._release(page)
            table.known += 1

    def _hold(self, page: int) -> None:
        self._cached.pop(page, None)
        self._holders[page] += 1

    def _take(self, after: int | None = None) -> int:
        """after: the page that it is to lie behind, if that can be."""
        page = self._free.take(after) if len(self._free) else self._oldest()
        self._holders[page] = 1
        return page

    def _oldest(self) -> int:
        page, _ = self._cached.popitem(last=False)
        del self._known[self._key_of.pop(page)]
        return page

    def _release(self, page: int) -> None:
        self._holders[page] -= 1
        if self._holders[page]:
            return
        if page in self._key_of:
            self._cached[page] = None
        else:
            self._free.add(page)


class _FreePages:
    """Pages that nobody has, handed out so that those of a sequence lie in one piece, which is read fastest.

    A page is followed by the next one. Where there is none to follow, sequences begin far from each other: at the
    beginning, in the middle, at the quarters, and so on.
    """

    def __init__(self, count: int) -> None:
        self.pages = set(range(count))
        bits = max(1, (count - 1).bit_length())
        self._rank = [int(f"{page:0{bits}b}"[::-1], 2) for page in range(count)]
        self._beginnings = sorted((self._rank[page], page) for page in range(count))  # a heap; some are not free
        self._listed = set(self.pages)

    def __len__(self) -> int:
        return len(self.pages)

    def add(self, page: int) -> None:
        self.pages.add(page)
        if page not in self._listed:
            self._listed.add(page)
            heappush(self._beginnings, (self._rank[page], page))

    def take(self, after: int | None) -> int:
        """The page after this one if it is free, else one to begin at."""
        page = None if after is None else after + 1
        while page not in self.pages:
            _, page = heappop(self._beginnings)
            self._listed.remove(page)
        self.pages.remove(page)
        return page
