"""What readings grow by, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Slope:
    """Growth per hour, and half the width of its 95 % confidence interval."""

    per_hour: float
    plus_minus: float

    def flat(self, least: float) -> bool:
        """Whether there is no growth that is both certain and at least so large."""
        return self.per_hour - self.plus_minus <= 0 or self.per_hour < least


def slope(at_s: Sequence[float], values: Sequence[float]) -> Slope:
    """Of a straight line through the readings.

    Neighbouring readings are not independent; so the error is that of a twelfth of them: means of stretches.
    """
    groups = max(3, min(12, len(values) // 2))
    x = np.array([chunk.mean() for chunk in np.array_split(np.array(at_s) / 3600, groups)])
    y = np.array([chunk.mean() for chunk in np.array_split(np.array(values), groups)])
    spread = float(((x - x.mean()) ** 2).sum())
    growth = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
    left = y - y.mean() - growth * (x - x.mean())
    error = (float((left**2).sum()) / max(1, groups - 2) / spread) ** 0.5
    return Slope(growth, 2.23 * error)  # Student's t for ten degrees of freedom
