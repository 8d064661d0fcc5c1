"""Drafters as an experiment wants them: slowed down, guessing at random, or none at all."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from edge_client.drafters import load_drafter
from edge_client.drafters.base import Candidates, Drafter, DrafterError, DrafterInfo

GARBAGE = "garbage"


class Garbage(Drafter):
    """Guesses random ids and is certain of every one: the worst drafter there is. It takes no time."""

    def __init__(self, vocabulary_size: int, vocabulary_fingerprint: str, context_tokens: int = 1 << 20) -> None:
        self.info = DrafterInfo(GARBAGE, vocabulary_size, vocabulary_fingerprint, context_tokens)
        self._length, self._fed = 0, False

    @property
    def length(self) -> int:
        return self._length

    def feed(self, tokens: Sequence[int]) -> None:
        if not tokens:
            raise ValueError("there is nothing to feed: the token sequence is empty")
        self._length += len(tokens)
        self._fed = True

    def candidates(self) -> Candidates:
        if not self._fed:
            raise DrafterError("nothing was fed since the drafter was made or rolled back; feed the last token again")
        # The same at the same position: a guess drawn again must be the same guess.
        token = np.random.default_rng(self._length).integers(self.info.vocabulary_size)
        return Candidates(np.array([token], np.int64), np.zeros(1))

    def rollback(self, length: int) -> None:
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot roll back to {length} tokens; there are {self._length}")
        self._fed = self._fed and length == self._length
        self._length = length

    def close(self) -> None:
        """There is nothing to free."""


class Slowed(Drafter):
    """Another drafter, taking at least `draft_ms` for every guess.

    Every feed takes that long, however many tokens it has: a model reads many tokens in about the time of one.
    """

    def __init__(self, drafter: Drafter, draft_ms: float) -> None:
        self.info = drafter.info
        self._drafter, self._draft_s = drafter, draft_ms / 1e3

    @property
    def length(self) -> int:
        return self._drafter.length

    def feed(self, tokens: Sequence[int]) -> None:
        began_s = time.perf_counter()
        self._drafter.feed(tokens)
        self._rest_from(began_s)

    @property
    def reads_blocks(self) -> bool:
        return self._drafter.reads_blocks

    def feed_block(self, tokens: Sequence[int], last: int) -> list[Candidates]:
        began_s = time.perf_counter()
        found = self._drafter.feed_block(tokens, last)
        self._rest_from(began_s)
        return found

    @property
    def most_tips(self) -> int:
        return self._drafter.most_tips

    def feed_beside(self, tokens: Sequence[int], length: int, paths: Sequence[Sequence[int]]) -> list[Candidates]:
        began_s = time.perf_counter()
        found = self._drafter.feed_beside(tokens, length, paths)
        self._rest_from(began_s)
        return found

    def _rest_from(self, began_s: float) -> None:
        time.sleep(max(0.0, self._draft_s - (time.perf_counter() - began_s)))

    def candidates(self) -> Candidates:
        return self._drafter.candidates()

    def rollback(self, length: int) -> None:
        self._drafter.rollback(length)

    def adopt_vocabulary(self, fingerprint: str, size: int) -> Sequence[str]:
        return self._drafter.adopt_vocabulary(fingerprint, size)

    def learn(self, log: Sequence[int], prompt_tokens: int) -> None:
        self._drafter.learn(log, prompt_tokens)

    def close(self) -> None:
        self._drafter.close()


def load(
    spec: str, draft_ms: float, vocabulary_size: int, vocabulary_fingerprint: str, *, threads: int = 1
) -> Drafter | None:
    """A fresh drafter: "none", "garbage" for the target's vocabulary, or whatever `load_drafter` takes.

    draft_ms: least time of a guess; 0 leaves the drafter as fast as it is. Raises DrafterError.
    """
    drafter = (
        Garbage(vocabulary_size, vocabulary_fingerprint) if spec == GARBAGE else load_drafter(spec, threads=threads)
    )
    return Slowed(drafter, draft_ms) if drafter is not None and draft_ms else drafter
