"""What every drafter with a model behind it shares: the length, the checks at the door, chunks and candidates.

Nothing here knows a runtime. A runtime gives three verbs: evaluate a chunk, drop a tail, free the model.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edge_client.drafters.base import Candidates, Drafter, DrafterError, DrafterInfo
from edge_client.drafters.top_candidates import top_candidates


class LanguageModelDrafter(Drafter):
    """A causal language model with a key-value cache that can forget its tail.

    info: as in `Drafter`. top_candidates: most candidates to give. chunk_tokens: most tokens in one evaluation.
    """

    def __init__(self, info: DrafterInfo, *, top_candidates: int, chunk_tokens: int) -> None:
        self.info = info
        self._top_candidates = top_candidates
        self._chunk_tokens = chunk_tokens
        self._length = 0
        self._logits: npt.NDArray[np.floating] | None = None  # [V], valid until the next evaluation
        self._candidates: Candidates | None = None
        self._closed = False

    @abstractmethod
    def _evaluate(self, tokens: Sequence[int], start: int, last: bool) -> npt.NDArray[np.floating] | None:
        """Evaluate at most `chunk_tokens` tokens at positions start, start+1, ...

        Returns the logits after the last of them, shape [V], if `last`; else None will do. May raise anything.
        """

    @abstractmethod
    def _drop_tail(self, length: int) -> None:
        """Forget all positions from `length` on, evaluated or not. Raises DrafterError if it cannot."""

    @abstractmethod
    def _free(self) -> None:
        """Free the model; called once."""

    @property
    def length(self) -> int:
        return self._length

    def feed(self, tokens: Sequence[int]) -> None:
        self._check_open()
        count, start = len(tokens), self._length
        if count == 0:
            raise ValueError("there is nothing to feed: the token sequence is empty")
        if min(tokens) < 0 or max(tokens) >= self.info.vocabulary_size:
            wrong = next(t for t in tokens if not 0 <= t < self.info.vocabulary_size)
            raise ValueError(
                f"token id {wrong} is outside the drafter's vocabulary of {self.info.vocabulary_size} tokens"
            )
        if start + count > self.info.context_tokens:
            raise DrafterError(
                f"the drafter holds {start} tokens and cannot take {count} more: "
                f"its context is {self.info.context_tokens} tokens"
            )
        logits = None
        try:
            if count == 1:
                logits = self._evaluate(tokens, start, True)
            else:
                for first in range(0, count, self._chunk_tokens):
                    chunk = tokens[first : first + self._chunk_tokens]
                    logits = self._evaluate(chunk, start + first, first + len(chunk) == count)
        except Exception as error:
            self._logits = self._candidates = None  # the runtime may have overwritten the row
            self._drop_tail(start)
            if isinstance(error, DrafterError):
                raise
            raise DrafterError(f"the drafter's model failed on {count} tokens at position {start}: {error}") from error
        self._length = start + count
        self._logits, self._candidates = logits, None

    def candidates(self) -> Candidates:
        self._check_open()
        if self._candidates is None:
            if self._logits is None:
                raise DrafterError(
                    "the drafter has no candidates yet: feed at least the last token of the sequence first"
                )
            self._candidates = top_candidates(self._logits, self._top_candidates)
        return self._candidates

    def rollback(self, length: int) -> None:
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot keep {length} tokens of a sequence of {self._length}")
        if length == self._length:
            return
        self._check_open()
        self._logits = self._candidates = None
        self._drop_tail(length)
        self._length = length

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._logits = self._candidates = None
            self._free()

    def _check_open(self) -> None:
        if self._closed:
            raise DrafterError("the drafter is closed")


def check_settings(threads: int, top_candidates: int, context_tokens: int | None) -> None:
    """Raises DrafterError unless all settings that every drafter has are positive."""
    for name, value in (("threads", threads), ("top_candidates", top_candidates), ("context_tokens", context_tokens)):
        if value is not None and value < 1:
            raise DrafterError(f"{name} must be at least 1, not {value}")
