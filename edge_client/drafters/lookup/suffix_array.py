"""Where does the end of a context stand in a large text that does not change? A suffix array over the text reversed.

Reversed, the longest common *ending* of context and text becomes the longest common beginning, which one binary search
finds. An array of 4 bytes per token stands for what a suffix automaton keeps in hash tables of some hundred bytes per
token; what it cannot do, grow token by token, past answers do not need.
"""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from speculation.lookup import MAX_MATCH_TOKENS, MAX_MATCHES, MIN_MATCH_TOKENS, Match

_SEPARATOR = 0xFFFFFFFF  # no id: ends every document, so that no match runs across two
_ID_BYTES = 4
_KEY_BYTES = _ID_BYTES * MAX_MATCH_TOKENS


class SuffixArray:
    """Documents of token ids, searchable. Ids are below 2^32 - 1."""

    def __init__(self, documents: Sequence[Sequence[int]]) -> None:
        reversed_text = [_SEPARATOR]
        for document in reversed(documents):
            reversed_text.extend(reversed(document))
            reversed_text.append(_SEPARATOR)
        text = np.array(reversed_text, np.int64)
        # Big-endian bytes compare like the ids they stand for, so a comparison is one of memory.
        padding = np.full(MAX_MATCH_TOKENS, _SEPARATOR, np.int64)
        self._bytes = np.concatenate((text, padding)).astype(">u4").tobytes()
        self._text = array("I", text.astype(np.uint32).tobytes())
        self._order = array("I", _sorted_places(text).astype(np.uint32).tobytes())

    def matches(self, context: Sequence[int]) -> Iterator[Match]:
        """Places that end like the context, the longest matches among them; at most MAX_MATCHES."""
        ending = list(context[: -MAX_MATCH_TOKENS - 1 : -1])
        if len(ending) < MIN_MATCH_TOKENS:
            return
        key = np.array(ending, ">u4").tobytes().ljust(_KEY_BYTES, b"\xff")
        number = int.from_bytes(key)
        after = bisect.bisect_left(self._order, key, key=self._key)
        # The longest common beginnings are the nearest neighbours on both sides: merge them outwards.
        sides = [range(after - 1, -1, -1), range(after, len(self._order))]
        found = [self._alike(side, number, len(ending)) for side in sides]
        heads = [next(side, None) for side in found]
        for _ in range(MAX_MATCHES):
            left, right = heads
            if left is None and right is None:
                return
            nearer = 0 if right is None or (left is not None and left.length >= right.length) else 1
            match, heads[nearer] = heads[nearer], next(found[nearer], None)
            assert match is not None
            yield match

    def _key(self, place: int) -> bytes:
        start = place * _ID_BYTES
        return self._bytes[start : start + _KEY_BYTES]

    def _alike(self, ranks: range, number: int, limit: int) -> Iterator[Match]:
        for rank in ranks:
            place = self._order[rank]
            different_bits = (int.from_bytes(self._key(place)) ^ number).bit_length()
            length = min(limit, (8 * _KEY_BYTES - different_bits) // (8 * _ID_BYTES))
            if length < MIN_MATCH_TOKENS:
                return
            token = self._text[place - 1]  # a match never begins at a separator, so there is one before it
            if token != _SEPARATOR:
                yield Match(length, token)


def _sorted_places(text: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Places in the order of the MAX_MATCH_TOKENS tokens from there on, by doubling (Manber and Myers 1993)."""
    ranks = np.unique(text, return_inverse=True)[1].astype(np.int64)
    length = 1
    while length < MAX_MATCH_TOKENS:
        later = np.full_like(ranks, len(ranks))  # behind the end only separators follow, and they come last
        later[:-length] = ranks[length:]
        ranks = np.unique(ranks * (len(ranks) + 1) + later, return_inverse=True)[1].astype(np.int64)
        length *= 2
    return np.argsort(ranks, kind="stable")
