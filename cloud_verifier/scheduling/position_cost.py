"""What one position more costs a step: measured from the steps as they come."""

from __future__ import annotations

FADE = 0.98  # of what older steps say, per step
PRIOR_STEPS = 1.0  # what is assumed at first counts as much as so many steps


class PositionCost:
    """A straight line through the times of the latest steps, by least squares; a position costs its slope.

    Steps of one size say nothing of the slope, so what is assumed stays in the sums.
    """

    def __init__(self, free_positions: int, longer: float = 0.2) -> None:
        """At first, so many positions are taken to make a step longer by this share, as `step_cost` measures."""
        self._free, self._longer = max(1, free_positions), longer
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def stepped(self, positions: int, step_s: float) -> None:
        """A step of so many positions took so long."""
        self._weight = FADE * self._weight + 1
        self._x, self._y = FADE * self._x + positions, FADE * self._y + step_s
        self._xx, self._xy = FADE * self._xx + positions * positions, FADE * self._xy + positions * step_s

    @property
    def step_s(self) -> float:
        """How long a step takes, on average; 0 before the first."""
        return self._y / self._weight if self._weight else 0.0

    @property
    def position_s(self) -> float:
        """How much longer a step takes by one position."""
        if not self._weight:
            return 0.0
        assumed = self.step_s * self._longer / self._free
        # The assumed slope, as if seen in steps spread over as many positions as are free.
        prior = PRIOR_STEPS * (self._free / 2) ** 2
        spread = self._xx - self._x * self._x / self._weight
        together = self._xy - self._x * self._y / self._weight
        return max(0.0, (together + prior * assumed) / (spread + prior))
