"""How long a session waits for drafts before the verifier writes a token of its own.

Waiting never changes a word. It trades the session's time for the engine's: a token written without a guess to check
costs a forward of its own.
"""

from __future__ import annotations

import math

from cloud_verifier.scheduling.turnaround import Turnaround
from speculation.pace.base import PATIENCE_UNLIMITED_MS, Objective


class Patience:
    """One session's.

    What the device asks for is granted up to the operator's cap. A device that leaves it to the verifier is waited for
    by its objective: *latency* never; *capacity* whenever there is nothing to check, for as long as the device takes to
    answer, so that few forwards are spent on tokens it would have guessed; *balanced* as long, but only after as large
    a share of the steps as the engine's load: on an idle engine a token of the verifier's own costs nobody anything, on
    a saturated one it takes the place of another session's guess. (Waiting every time but only for a share of the
    turnaround costs more time for the same forwards: a wait that is cut short is met by no guess.)

    Waiting for guesses that turn out wrong gains nothing. So the verifier waits less and less often while the log takes
    none of them: after 0, 1, 2, 4, 8, ... tokens since it took one, until it takes one again.
    """

    MOST_LED_MS = 1000  # a device slower than this is better not waited for

    def __init__(
        self, asked_ms: int | None, objective: Objective = Objective.LATENCY, cap_ms: int = PATIENCE_UNLIMITED_MS
    ) -> None:
        """asked_ms: by the device, None if it leaves it to the verifier. cap_ms: most that anybody may ask for."""
        self.asked_ms, self.objective, self._cap_ms = asked_ms, objective, cap_ms
        self.turnaround = Turnaround()
        self.load = 0.0  # the engine's, after the session's latest step
        self._unguessed_tokens = 0
        self._turn = 0.0  # grows by the load with every step; a balanced session waits when it passes a whole number

    @property
    def ms(self) -> int:
        """How long to wait now; PATIENCE_UNLIMITED_MS for ever."""
        return min(self._cap_ms, self._led_ms() if self.asked_ms is None else self.asked_ms)

    def wrote(self, tokens: int, accepted: int) -> None:
        """A step wrote so many tokens, of which so many had been guessed."""
        self._unguessed_tokens = 0 if accepted else self._unguessed_tokens + tokens
        self._turn = self._turn % 1.0 + self.load

    def _led_ms(self) -> int:
        unguessed = self._unguessed_tokens
        if self.objective is Objective.LATENCY or unguessed & (unguessed - 1):  # the latter: not 0 or a power of two
            return 0
        if self.objective is Objective.BALANCED and self._turn < 1:  # not its turn
            return 0
        return min(self.MOST_LED_MS, math.ceil(self.turnaround.late_ms))
