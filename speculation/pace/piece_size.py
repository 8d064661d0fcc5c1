"""How many tokens of a prompt a drafter reads at a time.

A drafter cannot be interrupted within a call. Short pieces keep it interruptible: an answer that ends hands the drafter
over, and a commit that contradicts the line is honoured. Long pieces read faster per token. So pieces are as long as
takes some milliseconds on this device.
"""

from __future__ import annotations

LEAST_TOKENS, FIRST_TOKENS, MOST_TOKENS = 8, 16, 512
AIM_MS = 8.0


class PieceSize:
    """Learns from each piece that was read; a drafter keeps it over its answers."""

    def __init__(self) -> None:
        self.tokens = FIRST_TOKENS

    def read(self, tokens: int, took_ms: float) -> None:
        """A piece of so many tokens took so long. One shorter than was asked for says little."""
        if tokens >= self.tokens:
            fitting = tokens * AIM_MS / took_ms if took_ms > 0 else MOST_TOKENS
            self.tokens = int(max(LEAST_TOKENS, min(fitting, 2 * tokens, MOST_TOKENS)))
