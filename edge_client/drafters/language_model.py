"""What every drafter with a model behind it shares: the sequence, the checks at the door, chunks and candidates.

Nothing here knows a runtime. A runtime gives three verbs: evaluate a chunk, drop a tail, free the model; and copies of
what it has evaluated, if it can.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_client.drafters.base import MOST_PATH_TOKENS, Candidates, Drafter, DrafterError, DrafterInfo
from edge_client.drafters.kv_store import LEAST_TOKENS, Conversations, Kept, common
from edge_client.drafters.top_candidates import top_candidates


class LanguageModelDrafter(Drafter):
    """A causal language model with a key-value cache that can forget its tail.

    info: as in `Drafter`. top_candidates: most candidates to give. chunk_tokens: most tokens in one evaluation.
    memory_bytes: for conversations put aside; 0 keeps none.
    """

    def __init__(self, info: DrafterInfo, *, top_candidates: int, chunk_tokens: int, memory_bytes: int = 0) -> None:
        self.info = info
        self._top_candidates = top_candidates
        self._chunk_tokens = chunk_tokens
        self._aside = Conversations(memory_bytes)
        self._sequence: list[int] = []
        # What the runtime has evaluated. It begins with the sequence, and goes on past it after a conversation was
        # taken up again; after an error it may be shorter.
        self._held: list[int] = []
        self._fed = False
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

    def _evaluate_beside(
        self, tokens: Sequence[int], start: int, length: int, paths: Sequence[Sequence[int]]
    ) -> Sequence[npt.NDArray[np.floating]]:
        """As `_evaluate`, and paths that go on after the first `length` tokens; logits after the tokens, shape [V], and
        after each path.

        For runtimes with more than one of `most_tips`; at most MOST_PATH_TOKENS tokens.
        """
        raise NotImplementedError

    def _graft(self, tokens: Sequence[int]) -> int:
        """How many of the tokens that are to follow what is held a branch holds: they are held from now on, too."""
        return 0

    @abstractmethod
    def _drop_tail(self, length: int) -> None:
        """Forget all positions from `length` on, evaluated or not. Raises DrafterError if it cannot."""

    def _state_bytes(self, length: int) -> int:
        """Size of what was evaluated for so many tokens; 0 if it cannot be copied."""
        return 0

    def _copy_state(self, length: int) -> Any:
        """A copy of it, which later evaluations leave as it is. Of all tokens held."""
        raise NotImplementedError

    def _restore_state(self, state: Any, length: int) -> None:
        """Hold what was copied, and nothing else. May raise anything."""
        raise NotImplementedError

    @abstractmethod
    def _free(self) -> None:
        """Free the model; called once."""

    def speaker(self) -> Drafter:
        return self

    @property
    def length(self) -> int:
        return len(self._sequence)

    def feed(self, tokens: Sequence[int]) -> None:
        self._check_feed(tokens)
        with self._undoing(tokens):
            logits = None
            if self._walk(tokens) < len(tokens):
                logits = self._catch_up()
        self._fed, self._logits, self._candidates = True, logits, None

    def feed_block(self, tokens: Sequence[int], last: int) -> list[Candidates]:
        self._check_feed(tokens)
        if not 1 <= last <= min(len(tokens), self._chunk_tokens):
            raise ValueError(f"cannot give candidates after {last} of {len(tokens)} tokens")
        if not self.reads_blocks:
            return super().feed_block(tokens, last)
        with self._undoing(tokens):
            self._walk(tokens)
            self._drop(len(self._sequence) - last)
            if (early := len(self._sequence) - len(self._held) - self._chunk_tokens) > 0:
                self._catch_up(len(self._held) + early)
            block = self._sequence[len(self._held) :]
            rows = self._evaluate_block(block, len(self._held), last)
            self._held += block
            found = [top_candidates(row, self._top_candidates) for row in rows]
        self._fed, self._logits, self._candidates = True, None, found[-1]
        return found

    def feed_beside(self, tokens: Sequence[int], length: int, paths: Sequence[Sequence[int]]) -> list[Candidates]:
        if self.most_tips == 1 or not paths:
            return super().feed_beside(tokens, length, paths)
        self._check_feed(tokens)
        end = len(self._sequence) + len(tokens)
        if not 0 < length < end:
            raise ValueError(f"there are no branches after {length} of {end} tokens")
        if len(paths) >= self.most_tips or max(map(len, paths)) > MOST_PATH_TOKENS:
            raise ValueError(
                f"cannot look at {len(paths)} branches of up to {max(map(len, paths))} tokens beside the sequence; "
                f"expected at most {self.most_tips - 1} of up to {MOST_PATH_TOKENS}"
            )
        for path in paths:
            check_feed(self.info, length, path)
        with self._undoing(tokens):
            self._walk(tokens)
            self._drop(len(self._sequence) - 1)
            if (early := max(length, len(self._sequence) - MOST_PATH_TOKENS)) > len(self._held):
                self._catch_up(early)
            lacking = self._sequence[len(self._held) :]
            logits, *beside = self._evaluate_beside(lacking, len(self._held), length, paths)
            self._held += lacking
            found = [top_candidates(row, self._top_candidates) for row in beside]
        self._fed, self._logits, self._candidates = True, logits, None
        return found

    def _walk(self, tokens: Sequence[int]) -> int:
        """Append to the sequence; how many of the tokens the runtime holds already, from another time."""
        start = len(self._sequence)
        walked = common(self._held[start:], tokens) if len(self._held) > start else 0
        if (kept := self._aside.find(self._sequence, tokens, walked)) is not None and self._take_up(kept):
            walked = common(self._held[start : start + len(tokens)], tokens)
        self._sequence += tokens
        if walked < len(tokens):
            self._drop(start + walked)
            if grafted := self._graft(tokens[walked:-1]):  # the last is evaluated, for what may follow it
                self._held += tokens[walked : walked + grafted]
                walked += grafted
        return walked

    def _catch_up(self, end: int | None = None) -> npt.NDArray[np.floating] | None:
        """Evaluate what the sequence has and the runtime has not, up to a position; logits after the whole of it."""
        end, logits = end or len(self._sequence), None
        while (start := len(self._held)) < end:
            chunk = self._sequence[start : min(end, start + self._chunk_tokens)]
            logits = self._evaluate(chunk, start, start + len(chunk) == len(self._sequence))
            self._held += chunk
        return logits

    def _drop(self, length: int) -> None:
        if length < len(self._held):
            self._drop_tail(length)
            del self._held[length:]

    def _put_aside(self, length: int) -> None:
        """Keep a copy of what is held, if that is worth it: all but `length` tokens are about to be dropped."""
        held = self._held
        if len(held) - length < LEAST_TOKENS or not self._aside.most_bytes or self._aside.has(held):
            return
        try:
            if 0 < (size_bytes := self._state_bytes(len(held))) <= self._aside.most_bytes:
                self._aside.put(Kept(list(held), self._copy_state(len(held)), size_bytes))
        except Exception:  # of the runtime, or no memory: going back must not fail for it
            self._aside = Conversations(0)

    def _take_up(self, kept: Kept) -> bool:
        """Go on with a conversation put aside; False if the runtime will not have it."""
        try:
            self._restore_state(kept.state, len(kept.tokens))
        except Exception:  # as if it had never been kept: the sequence is read once more
            self._aside.forget(kept)
            self._drop_tail(0)
            self._held = []
            return False
        self._held = list(kept.tokens)
        return True

    def _check_feed(self, tokens: Sequence[int]) -> None:
        self._check_open()
        check_feed(self.info, len(self._sequence), tokens)

    @contextlib.contextmanager
    def _undoing(self, tokens: Sequence[int]) -> Iterator[None]:
        """After an error the sequence is as it was before, and the error a DrafterError."""
        start = len(self._sequence)
        try:
            yield
        except Exception as error:
            self._logits = self._candidates = None  # the runtime may have overwritten the row
            del self._sequence[start:], self._held[start:]
            self._drop_tail(len(self._held))
            if isinstance(error, DrafterError):
                raise
            raise DrafterError(
                f"the drafter's model failed on {len(tokens)} tokens at position {start}: {error}"
            ) from error

    def candidates(self) -> Candidates:
        self._check_open()
        if self._candidates is None:
            if not self._fed:
                raise DrafterError(
                    "the drafter has no candidates yet: feed at least the last token of the sequence first"
                )
            if self._logits is None:
                self._logits = self._read_last()
            self._candidates = top_candidates(self._logits, self._top_candidates)
        return self._candidates

    def _read_last(self) -> npt.NDArray[np.floating]:
        """Logits after a sequence that ends within what was held before it was fed."""
        with self._undoing(self._sequence[-1:]):
            self._drop(len(self._sequence) - 1)
            logits = self._catch_up()
        assert logits is not None
        return logits

    def rollback(self, length: int) -> None:
        if not 0 <= length <= len(self._sequence):
            raise ValueError(f"cannot keep {length} tokens of a sequence of {len(self._sequence)}")
        if length == len(self._sequence):
            return
        self._check_open()
        self._fed, self._logits, self._candidates = False, None, None
        self._put_aside(length)
        self._drop(length)
        del self._sequence[length:]

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._fed, self._logits, self._candidates = False, None, None
            self._aside = Conversations(0)
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
