"""Draft from this user's past answers: what an assistant said once, it often says again (He et al., REST, 2311.08252;
Oliaro et al., suffix decoding, 2411.04975).

The store is read when a session names its vocabulary and written when an answer is complete; in between it does not
change, so candidates depend on nothing but the sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edge_client.drafters.history_store import HistoryStore
from edge_client.drafters.lookup import LookupDrafter, Match
from edge_client.drafters.suffix_array import SuffixArray

_CONTEXT_TOKENS = 1 << 20


class HistoryDrafter(LookupDrafter):
    """Looks the sequence's last tokens up in past answers. store: where they are kept; default this user's own."""

    def __init__(
        self,
        store: HistoryStore | None = None,
        *,
        threads: int = 1,
        top_candidates: int = 16,
        context_tokens: int | None = None,
    ) -> None:
        super().__init__(
            "history",
            threads=threads,
            top_candidates=top_candidates,
            context_tokens=_CONTEXT_TOKENS if context_tokens is None else context_tokens,
        )
        self._store = store or HistoryStore()
        self._fingerprint: str | None = None
        self._answers = SuffixArray([])
        self._stale = True  # the store has more than `_answers`

    def adopt_vocabulary(self, fingerprint: str, size: int) -> Sequence[str]:
        super().adopt_vocabulary(fingerprint, size)
        if fingerprint == self._fingerprint and not self._stale:
            return ()
        loaded = self._store.load(fingerprint)
        usable = [answer for answer in loaded.answers if max(answer) < size]
        self._answers, self._fingerprint = SuffixArray(usable), fingerprint
        self._stale, self._candidates = False, None
        return loaded.notices

    def learn(self, log: Sequence[int], prompt_tokens: int) -> None:
        if self._fingerprint is not None and len(log) > prompt_tokens:
            self._store.add(self._fingerprint, log[prompt_tokens:])
            self._stale = True

    def _matches(self) -> Iterator[Match]:
        return self._answers.matches(self._tokens)
