"""A drafter whose tokens are the target's under other numbers, all or nearly all of them.

Token-level intersection (Timor et al., arXiv 2502.05202, algorithm 4): candidates outside of both vocabularies are
dropped, the rest get the target's ids before anything is drawn. Under shared noise nothing else is to be done: the
winner among the target's ids is the guess, and nobody needs q.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_client.drafters.base import Candidates, Drafter
from edge_client.drafters.vocabulary.wrapper import NOTHING, VocabularyWrapper
from speculation.vocabulary.correspondence import Correspondence
from speculation.vocabulary.vocabulary import Vocabulary


class RenumberedDrafter(VocabularyWrapper):
    """Ids through a table. A target token that the drafter has not is spelled with several of its own."""

    def __init__(self, inner: Drafter, target: Vocabulary, size: int, tokens: Correspondence) -> None:
        self._inner_tokens = tokens.drafter_tokens
        self._outer_ids = np.full(inner.info.vocabulary_size, -1, np.int64)
        for drafter_id, target_id in tokens.target_of.items():
            if drafter_id < inner.info.vocabulary_size and target_id < size:
                self._outer_ids[drafter_id] = target_id
        self._ends: list[int] = []  # length of the inner sequence after each target token
        super().__init__(inner, target, size)

    def _append(self, tokens: Sequence[int]) -> None:
        if not self._ends:
            self._inner.rollback(0)
        wanted: list[int] = []
        ends = []
        for token in tokens:
            wanted += self._inner_tokens(token)
            ends.append(self._inner.length + len(wanted))
        if wanted:
            self._inner.feed(wanted)
        self._ends += ends

    def _ask(self) -> Candidates:
        if not self._inner.length:
            return NOTHING
        found = self._inner.candidates()
        ids = self._outer_ids[found.ids]
        known = ids >= 0
        return Candidates(ids[known], found.log_probs[known], found.power_sum)

    def _cut(self, length: int) -> None:
        del self._ends[length:]
        self._inner.rollback(min(self._inner.length, self._ends[-1] if self._ends else 0))
