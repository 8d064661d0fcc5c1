"""What drafters without a model share: they guess that what followed the same words before will follow them again.

They evaluate nothing, so feeding costs an index entry and rolling back costs removing it. What differs is where they
look: in the conversation itself (`ngram`) or in past answers (`history`).
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from edge_client.drafters.base import ANY_VOCABULARY, Candidates, Drafter, DrafterError, DrafterInfo
from edge_client.drafters.language_model import check_feed, check_settings

MIN_MATCH_TOKENS = 2  # one equal token says next to nothing, see `blend`
MAX_MATCH_TOKENS = 32
MAX_MATCHES = 24  # more say hardly more, and each costs some microseconds
_WIDEST_VOCABULARY = 1 << 31
NOTHING = Candidates(np.zeros(0, np.int64), np.zeros(0))


class Match(NamedTuple):
    """A place where the last `length` tokens stood before, and the token that followed them there."""

    length: int
    token: int


def blend(matches: Iterable[Match], count: int) -> Candidates:
    """The `count` likeliest continuations, with probabilities that mean something.

    Interpolated absolute discounting (Ney, Essen and Kneser 1994): of n matches of at least l tokens, c of which go on
    with t, t gets (c - D) / n, and what is discounted is shared out by the shorter matches. D = 0.1 + 0.9 / l was read
    off documents and code, where a single match of 2, 3, 4, 6, 8, 20 tokens was right in 46, 56, 65, 73, 77, 88 percent
    of the cases, and two, three, four that agree as much more often as discounting says.
    """
    by_length: dict[int, list[int]] = {}
    for length, token in matches:
        by_length.setdefault(length, []).append(token)
    if not by_length:
        return NOTHING
    share: dict[int, float] = {}
    seen: dict[int, int] = {}
    total, rest = 0, 1.0
    for length in sorted(by_length, reverse=True):
        for token in by_length[length]:
            seen[token] = seen.get(token, 0) + 1
        total += len(by_length[length])
        discount = 0.1 + 0.9 / length
        for token, times in seen.items():
            share[token] = share.get(token, 0.0) + rest * (times - discount) / total
        rest *= discount * len(seen) / total
    best = sorted(share, key=lambda token: (-share[token], token))[:count]
    return Candidates(np.array(best, np.int64), np.log(np.array([share[token] for token in best])))


class LookupDrafter(Drafter):
    """A sequence of tokens and the places where its end stood before. Speaks the target's vocabulary, whatever it is.

    top_candidates: most candidates to give. context_tokens: longest sequence. threads: taken like by any drafter, but
    there is nothing to share out. Raises DrafterError for a setting below one.
    """

    def __init__(self, name: str, *, threads: int, top_candidates: int, context_tokens: int) -> None:
        check_settings(threads, top_candidates, context_tokens)
        self.info = DrafterInfo(name, _WIDEST_VOCABULARY, ANY_VOCABULARY, context_tokens)
        self._top_candidates = top_candidates
        self._tokens: list[int] = []
        self._candidates: Candidates | None = None
        self._fed = False
        self._closed = False

    @abstractmethod
    def _matches(self) -> Iterable[Match]:
        """Earlier places like the end of `_tokens`: at least MIN_MATCH_TOKENS alike, at most MAX_MATCHES of them."""

    def _grow(self, tokens: Sequence[int]) -> None:
        """Append checked tokens."""
        self._tokens.extend(tokens)

    def _shrink(self, length: int) -> None:
        """Drop everything from `length` on."""
        del self._tokens[length:]

    @property
    def length(self) -> int:
        return len(self._tokens)

    def feed(self, tokens: Sequence[int]) -> None:
        self._check_open()
        check_feed(self.info, len(self._tokens), tokens)
        self._grow(tokens)
        self._fed, self._candidates = True, None

    def candidates(self) -> Candidates:
        self._check_open()
        if not self._fed:
            raise DrafterError("the drafter has no candidates yet: feed at least the last token of the sequence first")
        if self._candidates is None:
            self._candidates = blend(self._matches(), self._top_candidates)
        return self._candidates

    def rollback(self, length: int) -> None:
        if not 0 <= length <= len(self._tokens):
            raise ValueError(f"cannot keep {length} tokens of a sequence of {len(self._tokens)}")
        if length == len(self._tokens):
            return
        self._check_open()
        self._shrink(length)
        self._fed, self._candidates = False, None

    def adopt_vocabulary(self, fingerprint: str, size: int) -> Sequence[str]:
        self.info = dataclasses.replace(self.info, vocabulary_size=size)
        return ()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._shrink(0)

    def _check_open(self) -> None:
        if self._closed:
            raise DrafterError("the drafter is closed")
