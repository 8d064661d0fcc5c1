"""One drafter, many answers: who has it, and who gets it next."""

from __future__ import annotations

import threading
from collections.abc import Callable

SOON_S = 0.5  # a call into the drafter that has taken longer may take for ever


class DrafterQueue:
    """Longest waiting first. `who` is any object that stands for an answer; from any thread."""

    def __init__(self, busy_s: Callable[[], float] = lambda: 0.0) -> None:
        """busy_s: how long the present call into the drafter has taken so far."""
        self._busy_s = busy_s
        self._changed = threading.Condition()
        self._holder: object | None = None
        self._waiting: dict[object, Callable[[], None]] = {}
        self._leaving = False

    @property
    def taken(self) -> bool:
        """Whether somebody has it."""
        return self._holder is not None

    @property
    def free_soon(self) -> bool:
        """Whether it is as good as free: who has it will leave after a call that should soon be back, and nobody
        waits for it."""
        return self._leaving and not self._waiting and self._busy_s() < SOON_S

    def leaving(self, who: object) -> None:
        """`who` will leave it as soon as a call into the drafter has come back."""
        with self._changed:
            self._leaving |= self._holder is who

    def take(self, who: object, timeout_s: float = 0.0) -> bool:
        """Whether `who` has it now: because it was free, became free in time, or was `who`'s already."""
        with self._changed:
            if self._changed.wait_for(lambda: self._holder in (None, who), timeout_s):
                self._waiting.pop(who, None)
                self._holder = who
                return True
            return False

    def ask(self, who: object, offer: Callable[[], None]) -> None:
        """Call `offer` once it is `who`'s: now, or later from the thread of whoever leaves it."""
        with self._changed:
            if self._holder not in (None, who):
                self._waiting[who] = offer  # asking again keeps one's place
                return
            self._holder = who
        offer()

    def leave(self, who: object) -> None:
        """`who` needs it no longer, whether it has it, waits for it, or never asked."""
        offer = None
        with self._changed:
            self._waiting.pop(who, None)
            if self._holder is not who:
                return
            self._leaving = False
            self._holder = next(iter(self._waiting), None)
            if self._holder is not None:
                offer = self._waiting.pop(self._holder)
            self._changed.notify_all()
        if offer is not None:
            offer()
