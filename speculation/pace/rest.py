"""When a device stops drafting because nothing it drafts is ever used, and when it tries again."""

from __future__ import annotations

from collections.abc import Sequence

from speculation.draft_tree import Outcome

MAX_HOPE_TOKENS = 256
MAX_REST_TOKENS = 512


class Rest:
    """Rests for a while after too many tokens without one used guess, and longer each time nothing came of waking.

    Where guesses come too late to be used, it is worth hoping for a while. Where they are wrong, it is not: a drafter
    that is right three times in ten has so many wrong lines in a row once in three hundred times.
    """

    LEAST_DRAFTS = 8  # a verdict on fewer is none
    WRONG_LINES = 16

    def __init__(self, after_tokens: int) -> None:
        """after_tokens: how many must come without a used guess, where guesses land at once."""
        self.left_tokens = 0
        self._after_tokens = self._next_tokens = after_tokens
        self._unused_tokens = self._drafts = self._wrong_lines = 0

    @property
    def resting(self) -> bool:
        """Whether nothing is to be drafted now."""
        return self.left_tokens > 0

    def drafted(self) -> None:
        """A guess was drawn."""
        self._drafts += 1

    def heard(
        self, new_tokens: int, used: int, acceptance: float, lead_tokens: float, outcomes: Sequence[Outcome] = ()
    ) -> None:
        """A commit came. used: guesses of its that counted; lead_tokens: how far ahead of the device the log is;
        outcomes: of the guesses that it decided."""
        if self.resting:
            self.left_tokens -= new_tokens
            return
        if used:
            self._unused_tokens = self._drafts = self._wrong_lines = 0
            self._next_tokens = self._after_tokens
            return
        self._unused_tokens += new_tokens
        if outcomes:
            self._wrong_lines = 0 if any(outcome.right for outcome in outcomes) else self._wrong_lines + 1
        late = self._drafts >= self.LEAST_DRAFTS and self._unused_tokens >= self._hope_tokens(acceptance, lead_tokens)
        if late or self._wrong_lines >= self.WRONG_LINES:
            self.left_tokens = self._next_tokens
            self._next_tokens = min(MAX_REST_TOKENS, self._next_tokens * 2)
            self._unused_tokens, self._wrong_lines = self._after_tokens // 2, self.WRONG_LINES // 2
            self._drafts = 0

    def _hope_tokens(self, acceptance: float, lead_tokens: float) -> float:
        """Tokens without a used guess after which there is no hope: several times what is usual over a long lead."""
        survival = acceptance**lead_tokens
        usual = 3 * (lead_tokens + 1) / survival if survival > 0.02 else 0.0
        return min(MAX_HOPE_TOKENS, max(self._after_tokens, usual))
