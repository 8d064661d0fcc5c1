"""A drafter's seat: what it holds of a conversation, and how much of its time it may use.

A next turn of the same conversation need not be read again. A conversation that outgrows the drafter's context is
held from a later start: a drafter may forget, the words are the verifier's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edge_client.drafters.base import ANY_VOCABULARY, Drafter
from speculation.duty import DutyCycle


@dataclass
class DrafterSeat:
    """tokens: what the drafter holds, from position `start` of the conversation on. duty: None for all the time."""

    drafter: Drafter
    duty: DutyCycle | None = None
    tokens: list[int] = field(default_factory=list)
    start: int = 0
    _vocabulary: tuple[str, int] | None = None

    @property
    def end(self) -> int:
        """Position after the last token that the drafter holds."""
        return self.start + len(self.tokens)

    @property
    def speaks_any_vocabulary(self) -> bool:
        """Whether the drafter's ids are the target's, whatever those are."""
        return self.drafter.info.vocabulary_fingerprint == ANY_VOCABULARY

    def adopt_vocabulary(self, fingerprint: str, size: int) -> Sequence[str]:
        """The target's vocabulary, at the start of a session; returns the drafter's notices."""
        if self._vocabulary not in (None, (fingerprint, size)):
            self.rollback(0)  # those ids meant something else
        self._vocabulary = fingerprint, size
        return self.drafter.adopt_vocabulary(fingerprint, size)

    def seat(self, drafter: Drafter) -> None:
        """Another drafter from now on, which holds nothing."""
        self.drafter, self.tokens, self.start, self._vocabulary = drafter, [], 0, None

    def sit(self, tokens: Sequence[int]) -> None:
        """Keep what the drafter holds of a conversation that begins with `tokens`, drop the rest."""
        agreed = self.start
        for held, wanted in zip(self.tokens, tokens[self.start :], strict=False):
            if held != wanted:
                break
            agreed += 1
        # The candidates after the last token are only known once it is fed again.
        self.rollback(min(agreed, len(tokens) - 1))

    def rollback(self, position: int) -> None:
        """Drop everything from `position` on."""
        kept = max(0, position - self.start)
        if kept < len(self.tokens):
            self.drafter.rollback(kept)
            del self.tokens[kept:]

    def reach(self, position: int) -> None:
        """Make sure that everything up to `position` can be held: if need be, begin again half a context before it."""
        context = self.drafter.info.context_tokens
        if self.tokens and position - self.start <= context:
            return
        self.rollback(self.start)
        self.start = 0 if position <= context else position - (context + 1) // 2

    def feed(self, tokens: Sequence[int]) -> None:
        """Append and evaluate."""
        self.drafter.feed(tokens)
        self.tokens.extend(tokens)
