"""The time that an answer has gained on plain streaming, and how much of it may be staked on waiting.

An account in milliseconds. Income: for every token the step that streaming would have taken for it. Outlay: the time
that really passed. A verifier that waits for guesses stakes time: if they turn out wrong, the wait is lost.

The purse is what the account holds plus a credit of some steps. From it comes what a plan may cost beyond streaming: so
much per token that the purse lasts for a horizon of tokens, and for one wait no more than the purse. Where waiting is
expected to be much faster than streaming, half of what the client's last answer gained may be staked, too, so an answer
need not first earn what waiting will.

    step 30 ms, 20 tokens in 450 ms: 150 ms ahead; the purse is 150 + 8 * 30 = 390 ms
    a plan may then take 30 + 390 / 128 = 33 ms per token, and wait at most 390 ms in all before a block lands
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from speculation.pace.plan import Plans

HORIZON_TOKENS = 128  # within which an answer that fell behind streaming is to catch up
CREDIT_STEPS = 8.0  # that an answer may be behind from the start
CARRIED = 0.5  # of what the client's last answer gained, that the next may stake
EARNS = 0.8  # of streaming's time: a plan that takes less is sure enough to be staked on
BEHIND_STEPS = 5.0  # behind streaming by so much, latency waits for nothing


class TimeAccount:
    """Of one answer. ahead_ms: of plain streaming since the first commit; negative if behind."""

    def __init__(self, last_ahead_ms: float) -> None:
        """last_ahead_ms: how far the client's last answer was ahead in the end."""
        self.ahead_ms = 0.0
        self._carried_ms = CARRIED * max(0.0, last_ahead_ms)
        self._heard_ms: float | None = None

    def heard(self, now_ms: float, new_tokens: int, step_ms: float) -> bool:
        """A commit came; whether there was one before, from which on time counts."""
        before_ms, self._heard_ms = self._heard_ms, now_ms
        if before_ms is None:
            return False
        self.ahead_ms += new_tokens * step_ms - (now_ms - before_ms)
        return True

    def behind(self, step_ms: float) -> bool:
        """Whether the answer is clearly slower than streaming."""
        return self.ahead_ms < -BEHIND_STEPS * step_ms

    def too_dear(self, plans: Plans, step_ms: float) -> NDArray[np.bool_]:
        """Which plans cost or stake more than there is; never the one without patience."""
        purse_ms = self.ahead_ms + CREDIT_STEPS * step_ms
        stake_ms = np.where(plans.ms_per_token < EARNS * step_ms, purse_ms + self._carried_ms, purse_ms)
        dear = plans.ms_per_token > step_ms + purse_ms / HORIZON_TOKENS
        dear |= plans.patience_ms * (plans.fills + 1) > stake_ms
        dear[0] = False
        return np.asarray(dear)
