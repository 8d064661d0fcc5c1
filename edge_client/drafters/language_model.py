"""What every drafter with a model behind it shares: the length, the checks at the door, chunks and candidates.

Nothing here knows a runtime. A runtime gives three verbs: evaluate a chunk, drop a tail, free the model.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence

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

    def _evaluate_block(self, tokens: Sequence[int], start: int, last: int) -> npt.NDArray[np.floating]:
        """As `_evaluate`, and gives the logits after each of the last `last` tokens, shape [last, V].

        For runtimes with `reads_blocks`. The rows are looked at before the next evaluation only.
        """
        raise NotImplementedError

    @abstractmethod
    def _drop_tail(self, length: int) -> None:
        """Forget all positions from `length` on, evaluated or not. Raises DrafterError if it cannot."""

    @abstractmethod
    def _free(self) -> None:
        """Free the model; called once."""

    def speaker(self) -> Drafter:
        return self

    @property
    def length(self) -> int:
        return self._length

    def feed(self, tokens: Sequence[int]) -> None:
        self._check_feed(tokens)
        count, start = len(tokens), self._length
        logits = None
        with self._undoing(tokens):
            if count == 1:
                logits = self._evaluate(tokens, start, True)
            else:
                for first in range(0, count, self._chunk_tokens):
                    chunk = tokens[first : first + self._chunk_tokens]
                    logits = self._evaluate(chunk, start + first, first + len(chunk) == count)
        self._length = start + count
        self._logits, self._candidates = logits, None

    def feed_block(self, tokens: Sequence[int], last: int) -> list[Candidates]:
        self._check_feed(tokens)
        if not 1 <= last <= min(len(tokens), self._chunk_tokens):
            raise ValueError(f"cannot give candidates after {last} of {len(tokens)} tokens")
        if not self.reads_blocks:
            return super().feed_block(tokens, last)
        with self._undoing(tokens):
            if (early := len(tokens) - self._chunk_tokens) > 0:
                self.feed(tokens[:early])
                tokens = tokens[early:]
            rows = self._evaluate_block(tokens, self._length, last)
            found = [top_candidates(row, self._top_candidates) for row in rows]
        self._length += len(tokens)
        self._logits, self._candidates = None, found[-1]
        return found

    def _check_feed(self, tokens: Sequence[int]) -> None:
        self._check_open()
        check_feed(self.info, self._length, tokens)

    @contextlib.contextmanager
    def _undoing(self, tokens: Sequence[int]) -> Iterator[None]:
        """After an error the sequence is as it was before, and the error a DrafterError."""
        start = self._length
        try:
            yield
        except Exception as error:
            self._logits = self._candidates = None  # the runtime may have overwritten the row
            self._length = start
            self._drop_tail(start)
            if isinstance(error, DrafterError):
                raise
            raise DrafterError(
                f"the drafter's model failed on {len(tokens)} tokens at position {start}: {error}"
            ) from error

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


def check_feed(info: DrafterInfo, held: int, tokens: Sequence[int]) -> None:
    """What every `feed` refuses: nothing, ids outside the vocabulary, more than fits after the `held` tokens."""
    count = len(tokens)
    if count == 0:
        raise ValueError("there is nothing to feed: the token sequence is empty")
    if min(tokens) < 0 or max(tokens) >= info.vocabulary_size:
        wrong = next(t for t in tokens if not 0 <= t < info.vocabulary_size)
        raise ValueError(f"token id {wrong} is outside the drafter's vocabulary of {info.vocabulary_size} tokens")
    if held + count > info.context_tokens:
        raise DrafterError(
            f"the drafter holds {held} tokens and cannot take {count} more: its context is {info.context_tokens} tokens"
        )


def check_settings(threads: int, top_candidates: int, context_tokens: int | None) -> None:
    """Raises DrafterError unless all settings that every drafter has are positive."""
    for name, value in (("threads", threads), ("top_candidates", top_candidates), ("context_tokens", context_tokens)):
        if value is not None and value < 1:
            raise DrafterError(f"{name} must be at least 1, not {value}")
