"""Own guesses by lookup in prompt and answer: they cost no evaluation."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from cloud_verifier.engines.base import Sampler
from cloud_verifier.guessing.base import Guesser, OwnGuess
from speculation.lookup import NgramIndex, blend
from speculation.sampling import Guess

KEPT_TOKENS = 16_384  # of the log, the latest: an index takes some hundred bytes per token
READ_TOKENS = 1024  # most tokens to index at once, about half a millisecond: a step must not wait for a long prompt
CANDIDATES = 16


class NgramGuesser(Guesser):
    """What followed the log's last tokens earlier in it. Chooses among that with the session's own noise."""

    def __init__(self, sampler: Sampler) -> None:
        self._index = NgramIndex()
        self._choose = Guess(sampler.params, sampler.seed)
        self._read: int | None = None  # position after the last token of the log that the index has

    def after(self, log: Sequence[int], path: Sequence[int]) -> Generator[OwnGuess, None, None]:
        if not self._catch_up(log):
            return
        index = self._index
        held = len(index.tokens)
        try:
            index.extend(path)
            position = len(log) + len(path)
            while len((found := blend(index.matches(), CANDIDATES)).ids):
                token, confidence = self._choose(position, *found)
                yield OwnGuess(token, confidence)
                index.extend([token])
                position += 1
        finally:
            index.truncate(held)

    def _catch_up(self, log: Sequence[int]) -> bool:
        """Index what the log has by now, a piece of it. Whether that is all."""
        if self._read is None:
            self._read = max(0, len(log) - KEPT_TOKENS)
        end = min(len(log), self._read + READ_TOKENS)
        self._index.extend(log[self._read : end])
        self._read = end
        return end == len(log)
