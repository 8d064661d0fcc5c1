"""How many guesses a device should have on its line: all it may on an idle verifier, what can be used on a busy one."""

from __future__ import annotations

import math


class DraftBudget:
    """One session's. Smoothed, so that a device is not told something else in every commit.

    Of the guesses on a device's line the first are spent before they land, for the log runs ahead of what the device
    knows: its *lead*. What follows is checked, a *share* of each step. A step that leaves guesses out pulls the share
    down a little towards what it gave, or up to it at once; one that has room to spare lets it grow. Gently: guesses
    that a device did not draw cannot be checked when the next step has room, and that costs more than drawing them.
    """

    FLOOR = 4  # guesses past the lead: a session that never drafts is never learned about
    PULL = 0.1
    GROWTH = 1.1

    def __init__(self, most: int) -> None:
        """most: what the device may have on its line at best."""
        self._most = most
        self._share = float(most)
        self._lead = 0.0

    def allow(self, most: int) -> None:
        """The device may have more, for its guesses branch."""
        if most > self._most:
            self._share, self._most = max(self._share, float(most)), most

    @property
    def tokens(self) -> int:
        """What to tell the device."""
        return min(self._most, math.ceil(self._lead + max(self.FLOOR, self._share)))

    def heard(self, lead: int) -> None:
        """A draft came; the log was `lead` tokens longer than the device knew."""
        self._lead += self.PULL * (lead - self._lead)

    def stepped(self, checked: int, left_out: int, *, full: bool) -> None:
        """A step checked so many guesses and left out so many; full: it had no room for another position."""
        if left_out:
            self._share = max(checked, self._share + self.PULL * (checked - self._share))
        elif not full:
            self._share = min(self._most, max(1.0, self._share) * self.GROWTH)
