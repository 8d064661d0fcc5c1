"""Where llama.cpp keeps the keys and values of positions, and whose they are.

A unified cache is a row of cells. Each holds a position of one or more of llama.cpp's sequences, called holders here,
and a new token gets the first free one after the last that was taken. Attention adds up a sequence's cells in the order
in which they lie. So that the bits of a sum do not depend on what other sequences did, a sequence's cells must lie in
the order of its positions. They do, because cells are only ever taken **at the end**: one that is given up before that
is left to the holder `_DEAD`, and only the very last are really freed. Where too many are dead, the living are laid
anew, from the beginning (`compact`): a copy, so the same bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cloud_verifier.engines.base import EngineDead

MOST_HOLDERS = 254  # llama.cpp has 256 sequences
_DEAD = 255
_SLACK = 2048  # so many dead cells are never worth a copy
_Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Chain(NamedTuple):
    """A holder's cells: positions 0 to `length` - 1, and the pages that they lie on, of which the full ones may be
    another's, too."""

    holder: int
    pages: Sequence[int]
    length: int


class _Run(NamedTuple):
    """The latest cells of a holder: so many from `cell` on, of positions from `position` on."""

    cell: int
    position: int
    length: int


class Cells:
    """All cells of one context."""

    def __init__(self, api: Any, context: Any, holders: int, page_tokens: int) -> None:
        """holders: so many, from 0 on. The context is made for one sequence more, `company`, which keeps nothing."""
        self._api, self._context, self._page_tokens = api, context, page_tokens
        self.count, self.company = api.llama_n_ctx(context), holders
        self._memory = api.llama_get_memory(context)
        self.used = 0  # all before are living or dead, all after are free
        self._runs: dict[int, _Run] = {}

    def written(self, holder: int, position: int, count: int) -> None:
        """So many positions were evaluated for a holder, after whatever was told before."""
        run = self._runs.get(holder)
        if run is not None and run.cell + run.length == self.used and run.position + run.length == position:
            self._runs[holder] = _Run(run.cell, run.position, run.length + count)
        else:
            self._runs[holder] = _Run(self.used, position, count)
        self.used += count

    def share(self, source: int, holder: int, length: int) -> None:
        """A holder that has none gets another's first cells."""
        self._api.llama_memory_seq_cp(self._memory, source, holder, 0, length)

    def drop(self, holder: int, length: int, *, shared: bool = False) -> None:
        """A holder gives up its positions from `length` on. shared: there may be others that have them, too."""
        self._give_up(holder, length, shared=shared)
        self.undo(holder, length)

    def leave(self, holder: int, length: int) -> None:
        """A holder gives up all it has. Its positions from `length` on nobody else has, those before somebody does."""
        self._give_up(holder, length, shared=False)
        self._runs.pop(holder, None)
        self.undo(holder, 0)

    def _give_up(self, holder: int, length: int, *, shared: bool) -> None:
        """Cells that are the last will be free, others will be dead, once the holder has them no more."""
        run = self._runs.pop(holder, None)
        if run is not None and length > run.position:
            self._runs[holder] = _Run(run.cell, run.position, min(run.length, length - run.position))
        last = run is not None and run.cell + run.length == self.used and length >= run.position
        if last and not shared:
            assert run is not None
            self.used -= max(0, run.position + run.length - length)
        else:
            self._api.llama_memory_seq_cp(self._memory, holder, _DEAD, length, -1)

    def undo(self, holder: int, length: int) -> None:
        """What was evaluated for a holder and not told as written is as if it had not been."""
        self._api.llama_memory_seq_rm(self._memory, holder, length, -1)

    def clear(self) -> None:
        """Free all."""
        self._api.llama_memory_clear(self._memory, False)
        self._runs.clear()
        self.used = 0

    def crowded(self, living: int, more: int) -> bool:
        """Whether to lay the living cells anew before so many more are taken. Dead ones cost time, too, at every
        step; copied when they are as many as the living, they cost about a copy of every cell."""
        return self.used + more > self.count or self.used > 2 * living + _SLACK

    def compact(self, chains: Sequence[Chain]) -> None:
        """Lay the cells of these holders anew, and free all others. Raises EngineDead."""
        size = self._page_tokens
        home: dict[int, int] = {}  # of a page: the holder for whom it is laid
        plan: list[tuple[Chain, int, int, _Bytes | None]] = []
        for chain in chains:
            full = chain.length // size
            pages = 0
            while pages < full and chain.pages[pages] in home:
                pages += 1
            source = home[chain.pages[pages - 1]] if pages else -1
            own = self._saved(chain.holder, pages * size) if chain.length > pages * size else None
            plan.append((chain, source, pages * size, own))
            home.update(dict.fromkeys(chain.pages[pages:full], chain.holder))
        self.clear()
        for chain, source, length, own in plan:
            if length:
                self.share(source, chain.holder, length)
            if own is not None:
                self._restore(chain.holder, length, own)
                self.written(chain.holder, length, chain.length - length)

    def _saved(self, holder: int, position: int) -> _Bytes:
        """A copy of a holder's cells from a position on."""
        self._api.llama_memory_seq_cp(self._memory, holder, self.company, position, -1)
        copied = np.empty(self._api.llama_state_seq_get_size(self._context, self.company), np.uint8)
        count = self._api.llama_state_seq_get_data(self._context, _pointer(copied), len(copied), self.company)
        self._api.llama_memory_seq_rm(self._memory, self.company, -1, -1)
        if count != len(copied):
            raise EngineDead("llama.cpp could not copy its keys and values")
        return copied

    def _restore(self, holder: int, position: int, copied: _Bytes) -> None:
        if self._api.llama_state_seq_set_data(self._context, _pointer(copied), len(copied), self.company) != len(
            copied
        ):
            raise EngineDead("llama.cpp could not take its keys and values back")
        self._api.llama_memory_seq_cp(self._memory, self.company, holder, position, -1)
        self._api.llama_memory_seq_rm(self._memory, self.company, -1, -1)


def _pointer(array: _Bytes) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
