"""What drafters without a model share: they guess that what followed the same words before will follow them again.

They evaluate nothing, so feeding costs an index entry and rolling back costs removing it. What differs is where they
look: in the conversation itself (`ngram`) or in past answers (`history`).
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterable, Sequence

from edge_client.drafters.base import ANY_VOCABULARY, Candidates, Drafter, DrafterError, DrafterInfo
from edge_client.drafters.language_model import check_feed, check_settings
from speculation.lookup import Match, blend

_WIDEST_VOCABULARY = 1 << 31


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
            self._candidates = Candidates(*blend(self._matches(), self._top_candidates))
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
