"""How busy the engine is."""

from __future__ import annotations

import math


class Load:
    """The share of its positions that an engine has lately used: 0 idle, 1 saturated.

    A step counts with the share of its token budget that it used, and time between steps counts as none used. What is
    longer ago than MEMORY_MS hardly counts.
    """

    MEMORY_MS = 1000.0

    def __init__(self) -> None:
        self.share = 0.0
        self._until_ms: float | None = None

    def stepped(self, used: float, began_ms: float, ended_ms: float) -> None:
        """A step used this share of its token budget; prompts may make it more than all."""
        if self._until_ms is not None:
            self._pass(0.0, began_ms - self._until_ms)
        self._pass(min(1.0, used), ended_ms - began_ms)
        self._until_ms = ended_ms

    def _pass(self, used: float, ms: float) -> None:
        self.share += (used - self.share) * (1 - math.exp(-max(0.0, ms) / self.MEMORY_MS))
