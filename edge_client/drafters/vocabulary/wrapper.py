"""What drafters share that speak the target's tokens with a model that has others."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from edge_client.drafters.base import Candidates, Drafter, DrafterError
from speculation.vocabulary.vocabulary import Vocabulary

NOTHING = Candidates(np.zeros(0, np.int64), np.zeros(0))


class VocabularyWrapper(Drafter):
    """Target tokens outside, the model's own inside: the checks at the door, and what is as the model's.

    inner: belongs to the wrapper from now on and is closed with it. size: of the target's vocabulary; ids past its
    strings are padding.
    """

    def __init__(self, inner: Drafter, target: Vocabulary, size: int) -> None:
        self._inner = inner
        self._tokens: list[int] = []
        self._fed = False
        self._found: Candidates | None = None
        self.info = dataclasses.replace(
            inner.info, vocabulary_size=size, vocabulary_fingerprint=target.fingerprint, context_tokens=self._context()
        )

    def _context(self) -> int:
        return self._inner.info.context_tokens

    @abstractmethod
    def _append(self, tokens: Sequence[int]) -> None:
        """Take target tokens and evaluate what needs no answer. May raise anything; `_cut` then undoes it."""

    @abstractmethod
    def _ask(self) -> Candidates:
        """Candidates in the target's ids, likeliest first."""

    @abstractmethod
    def _cut(self, length: int) -> None:
        """Keep the first `length` target tokens, some of which may have been half taken."""

    @property
    def length(self) -> int:
        return len(self._tokens)

    def feed(self, tokens: Sequence[int]) -> None:
        if not len(tokens):
            raise ValueError("there is nothing to feed: the token sequence is empty")
        limit = self.info.vocabulary_size
        for token in tokens:
            if not 0 <= token < limit:
                raise ValueError(f"token id {token} is outside the target's vocabulary of {limit} tokens")
        before = len(self._tokens)
        if before + len(tokens) > self.info.context_tokens:
            raise DrafterError(
                f"the drafter holds {before} tokens and cannot take {len(tokens)} more: "
                f"its context is {self.info.context_tokens} tokens"
            )
        try:
            self._append(tokens)
        except BaseException:
            self._cut(before)
            raise
        self._tokens.extend(tokens)
        self._fed, self._found = True, None

    def candidates(self) -> Candidates:
        if not self._fed:
            raise DrafterError("the drafter has no candidates yet: feed at least the last token of the sequence first")
        if self._found is None:
            self._found = self._ask()
        return self._found

    def rollback(self, length: int) -> None:
        if not 0 <= length <= len(self._tokens):
            raise ValueError(f"cannot keep {length} tokens of a sequence of {len(self._tokens)}")
        if length < len(self._tokens):
            self._cut(length)
        if not length:
            self._inner.rollback(0)
        if length < len(self._tokens):
            del self._tokens[length:]
            self._fed, self._found = False, None

    def speaker(self) -> Drafter | None:
        return self._inner.speaker()

    def close(self) -> None:
        self._fed, self._found = False, None
        self._inner.close()
