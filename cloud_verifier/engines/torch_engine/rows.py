"""How many rows one forward may have."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RowRule:
    """How many rows one forward may have: a multiple of `multiple`, at most `most`. A longer step takes several."""

    multiple: int
    most: int

    def padded(self, rows: int) -> int:
        """The number of rows to run for so many tokens."""
        return -(-rows // self.multiple) * self.multiple


PLAIN_ROWS = RowRule(1, 2048)


def strict_row_rules(device: torch.device) -> tuple[RowRule, ...]:
    """What strict mode may try, cheapest first. On a GPU the shape never changes, hence neither does the kernel."""
    if device.type == "cpu":
        return RowRule(8, 512), RowRule(16, 512), RowRule(64, 64)
    return RowRule(64, 64), RowRule(256, 256)
