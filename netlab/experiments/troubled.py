"""A real drafter with a device's troubles: slow, late now and then, hanging, failing, or keeping Python to itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from enum import StrEnum

from edge_client.drafters.base import Candidates, Drafter, DrafterError

SLOW_TOKEN_S = 0.010  # a model of some billion parameters on a phone reads a hundred tokens a second
LATE_S = 0.5  # a driver that is busy with the screen, a page fault on flash memory
BUSY_S = 0.020  # pure Python that does not let go of the interpreter
TROUBLED_CALL = 9  # the first to be late, to hang or to fail


class Trouble(StrEnum):
    """What a call into the drafter does beside its work."""

    SLOW = "slow"  # takes its time for every token
    LATE = "late"  # every ninth call takes half a second
    HANGING = "hanging"  # the ninth call does not come back
    FAILING = "failing"  # the ninth call raises
    BUSY = "busy"  # holds the interpreter


class Troubled(Drafter):
    """`inner` guesses, with trouble. A call that hangs comes back when the drafter is closed or `released`."""

    def __init__(self, inner: Drafter, trouble: Trouble) -> None:
        self.info = inner.info
        self._inner, self._trouble, self._calls = inner, trouble, 0
        self.released = threading.Event()

    @property
    def length(self) -> int:
        return self._inner.length

    def feed(self, tokens: Sequence[int]) -> None:
        self._calls += 1
        if self._trouble is Trouble.SLOW:
            time.sleep(SLOW_TOKEN_S * len(tokens))
        elif self._trouble is Trouble.LATE and not self._calls % TROUBLED_CALL:
            time.sleep(LATE_S)
        elif self._trouble is Trouble.HANGING and self._calls >= TROUBLED_CALL:
            self.released.wait()
        elif self._trouble is Trouble.FAILING and self._calls >= TROUBLED_CALL:
            raise DrafterError("the runtime has lost its device")
        elif self._trouble is Trouble.BUSY:
            until_s = time.perf_counter() + BUSY_S
            while time.perf_counter() < until_s:
                pass
        self._inner.feed(tokens)

    def candidates(self) -> Candidates:
        return self._inner.candidates()

    def rollback(self, length: int) -> None:
        self._inner.rollback(length)

    def close(self) -> None:
        self.released.set()
        self._inner.close()
