"""Branches of a llama.cpp sequence that stay evaluated beside it: twigs of a trunk, in one unified cache.

A cell of a unified cache belongs to as many sequences as want it. The trunk is the one that the drafter holds; a twig
is another, with the trunk's cells up to where it parts and cells of its own from there on. So a batch may go on at
several ends at once, and an end that is left for a better one need not be evaluated again when it is taken up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from edge_client.drafters.base import MOST_PATH_TOKENS
from edge_client.drafters.kv_store import common
from edge_client.drafters.llama_cpp.rollback import SEQUENCE

MOST_TWIGS = 15
MOST_TOKENS = 256  # of all twigs together, where they have parted from the trunk


@dataclass
class _Twig:
    """tokens: what it holds from position `start` on; all before is the trunk's."""

    start: int
    tokens: list[int]


class Place(NamedTuple):
    """Where a path is to be evaluated: from token number `held` on, as tokens of this sequence of llama.cpp's."""

    sequence: int
    held: int


class Twigs:
    """The twigs of one context, whose sequences 1 to MOST_TWIGS are theirs.

    The trunk is given as the tokens that it holds. Nothing here evaluates: see `places` and `grown`.
    """

    def __init__(self, api: Any, context: Any) -> None:
        self._api, self._memory = api, api.llama_get_memory(context)
        self._twigs: dict[int, _Twig] = {}  # by sequence, the one used latest last
        self._unused = list(range(1, MOST_TWIGS + 1))

    def __len__(self) -> int:
        return len(self._twigs)

    def places(self, trunk: list[int], base: int, paths: Sequence[Sequence[int]]) -> list[Place]:
        """Where to evaluate paths that go on after the first `base` tokens of the trunk, at least the last of each.

        Twigs that parted before are dropped: nobody goes on there. To be followed by `grown`, or by `clear`.
        """
        self._prune(trunk, base)
        tail = trunk[base:]
        found: list[Place] = []
        for path in paths:
            most = len(path) - 1
            source, held = SEQUENCE, min(most, common(tail, path))
            for sequence, twig in self._twigs.items():
                if twig.start - base <= most:
                    shared = min(most, common([*tail[: twig.start - base], *twig.tokens], path))
                    if shared > held:
                        source, held = sequence, shared
            taken = {place.sequence for place in found}
            known = self._twigs.get(source)
            if known is None or source in taken or known.start + len(known.tokens) > base + held:
                sequence = self._vacant({*taken, source})
                self._api.llama_memory_seq_cp(self._memory, source, sequence, 0, base + held)
                self._twigs[sequence] = _Twig(base + held, [])
                source = sequence
            found.append(Place(source, held))
        return found

    def grown(self, trunk: list[int], base: int, paths: Sequence[Sequence[int]], places: Sequence[Place]) -> None:
        """The paths were evaluated there."""
        for path, place in zip(paths, places, strict=True):
            along = min(len(path) - 1, common(trunk[base:], path))
            del self._twigs[place.sequence]
            self._twigs[place.sequence] = _Twig(base + along, list(path[along:]))
        self._make_room()

    def cut(self, trunk: list[int], length: int) -> None:
        """The trunk is about to drop its tokens from `length` on. If they are few, they become a twig."""
        if not self._twigs:
            return
        dropped = list(trunk[length:])
        if not length or len(dropped) > MOST_PATH_TOKENS:
            self.clear()
            return
        for sequence, twig in list(self._twigs.items()):
            if twig.start > len(trunk):  # nobody knows any more what it has of the trunk
                self._drop(sequence)
            elif twig.start > length:
                twig.tokens[:0] = trunk[length : twig.start]
                twig.start = length
        if dropped:
            sequence = self._vacant(set())
            self._api.llama_memory_seq_cp(self._memory, SEQUENCE, sequence, 0, -1)
            self._twigs[sequence] = _Twig(length, dropped)
            self._make_room()

    def graft(self, trunk: list[int], tokens: Sequence[int]) -> int:
        """How many of the tokens that are to follow the trunk some twig holds: the trunk has them, too, from now on."""
        end, best, most = len(trunk), None, 0
        for sequence, twig in self._twigs.items():
            own = end - twig.start
            if 0 <= own < len(twig.tokens) and twig.tokens[:own] == trunk[twig.start :]:
                shared = common(twig.tokens[own:], tokens)
                if shared > most:
                    best, most = sequence, shared
        if best is not None:
            self._api.llama_memory_seq_cp(self._memory, best, SEQUENCE, end, end + most)
        return most

    def clear(self) -> None:
        """Drop all of them."""
        for sequence in list(self._twigs):
            self._drop(sequence)

    def _prune(self, trunk: list[int], base: int) -> None:
        for sequence, twig in list(self._twigs.items()):
            own = base - twig.start
            if own <= 0:
                continue
            if len(twig.tokens) > own and twig.tokens[:own] == trunk[twig.start : base]:
                del twig.tokens[:own]
                twig.start = base
            else:
                self._drop(sequence)

    def _make_room(self) -> None:
        while sum(len(twig.tokens) for twig in self._twigs.values()) > MOST_TOKENS:
            self._drop(next(iter(self._twigs)))

    def _vacant(self, kept: set[int]) -> int:
        """A sequence without cells; that of the twig which was not used for longest, if need be, but none of these."""
        if not self._unused:
            self._drop(next(sequence for sequence in self._twigs if sequence not in kept))
        return self._unused.pop()

    def _drop(self, sequence: int) -> None:
        self._api.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        del self._twigs[sequence]
        self._unused.append(sequence)
