"""Prompt lookup: what followed these words earlier in the conversation will follow them again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edge_client.drafters.lookup.lookup import LookupDrafter
from speculation.lookup import Match, NgramIndex

_CONTEXT_TOKENS = 1 << 20


class NgramDrafter(LookupDrafter):
    """Looks the sequence's last tokens up in the sequence itself."""

    def __init__(self, *, threads: int = 1, top_candidates: int = 16, context_tokens: int | None = None) -> None:
        super().__init__(
            "ngram",
            threads=threads,
            top_candidates=top_candidates,
            context_tokens=_CONTEXT_TOKENS if context_tokens is None else context_tokens,
        )
        self._index = NgramIndex()
        self._tokens = self._index.tokens

    def _grow(self, tokens: Sequence[int]) -> None:
        self._index.extend(tokens)

    def _shrink(self, length: int) -> None:
        self._index.truncate(length)

    def _matches(self) -> Iterator[Match]:
        return self._index.matches()
