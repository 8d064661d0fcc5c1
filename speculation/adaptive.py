"""The adaptive pace: how deep to draft, when to send, when to ask the verifier to wait, when not to draft at all.

It measures the round trip, the verifier's step, its own drafting time, and how often guesses of a given confidence and
depth are right. From these it decides, before every token:

* *Depth.* A verifier that never waits has written about ``n0 = round trip / step`` more tokens by the time a guess
lands. A
  guess is worth drawing while it is likely enough that the line survives to it and past n0.
* *Sending.* The verifier takes what has arrived when a step begins; a block that lands just before that is as good as
three
  that land earlier, and costs a third of the bytes.
* *Patience.* Where the round trip is short against a step, a verifier that waits a few milliseconds for guesses that
are about
  to land gets more of them checked per step. The device alone knows whether they are, so it says how long to wait.
* *Rest.* If nothing it drafts is ever used (too slow, or too often wrong), it stops and tries again after a while.

Every decision changes only when tokens appear: switching in mid-answer never changes a word.
"""

from __future__ import annotations

import math

from speculation.estimators import Calibration, Window
from speculation.pace import Action, News, Objective, Pace, View

MAX_PATIENCE_MS = 1000


class Adaptive(Pace):
    """The default pace. One per session."""

    name = "adaptive"
    MAX_FILLS = 8

    def __init__(
        self,
        objective: Objective = Objective.LATENCY,
        *,
        max_depth: int = 64,
        min_survival: float = 0.01,
        block_tokens: int = 24,
        rest_after_tokens: int = 48,
    ) -> None:
        """max_depth: most guesses on the line. min_survival: least probability of counting that is worth a draft.
        block_tokens: most guesses in a message. rest_after_tokens: tokens that must come without one used guess before
        the pace rests."""
        self.objective = objective
        self.max_depth, self.min_survival = max_depth, min_survival
        self.block_tokens, self.rest_after_tokens = block_tokens, rest_after_tokens
        self.rtt, self.step, self.draft = Window(16, 50.0), Window(16, 30.0), Window(32, 5.0)
        self.calibration = Calibration()
        self._survivals: list[float] = []  # of each guess on the line, from the log up to it
        self._step_began_ms = 0.0  # the device's clock when the verifier's present step began, as far as is known
        self._fills = 0  # steps of its own that a patient verifier takes before a first block lands
        self._unused_tokens = 0
        self._drafts_since_used = 0
        self._resting_tokens = 0
        self._rest = rest_after_tokens

    # -- what it hears --------------------------------------------------------------------------------------------

    def heard(self, news: News) -> None:
        if news.rtt_ms is not None:
            self.rtt.add(news.rtt_ms)
        if news.forward_ms > 0:
            self.step.add(news.forward_ms)
        self._step_began_ms = news.now_ms - self.rtt.median_ms / 2
        for outcome in news.outcomes:
            self.calibration.learn(outcome)
        stands = len(news.outcomes) == news.new_tokens and all(outcome.right for outcome in news.outcomes)
        if stands:
            spent = self._survivals[news.new_tokens - 1] if news.new_tokens else 1.0
            self._survivals = [s / spent for s in self._survivals[news.new_tokens :]]
        else:
            self._survivals.clear()
        self._consider_rest(news)
        self.patience_ms = self._patience()

    def drafted(self, draft_ms: float, confidence: float) -> None:
        self.draft.add(draft_ms)
        self._drafts_since_used += 1
        before = self._survivals[-1] if self._survivals else 1.0
        self._survivals.append(before * self.calibration.probability(confidence, len(self._survivals)))

    def reset(self) -> None:
        self._survivals.clear()
        self.patience_ms = 0

    # -- what it decides ------------------------------------------------------------------------------------------

    def next(self, view: View) -> Action:
        if view.unsent and self._must_send(view):
            return Action.FLUSH
        if self._worth_drafting(view):
            return Action.DRAFT
        return Action.FLUSH if view.unsent else Action.WAIT

    @property
    def lead_tokens(self) -> float:
        """n0: tokens the verifier will have written past the log as known when a guess drawn now lands."""
        return self._fills if self.patience_ms else self.rtt.median_ms / self.step.median_ms

    def _worth_drafting(self, view: View) -> bool:
        if not view.can_draft or view.depth >= min(self.max_depth, view.budget) or self._resting_tokens > 0:
            return False
        survival = self._survivals[-1] if self._survivals else 1.0
        held = self.patience_ms and view.unsent  # the verifier waits for what is not sent
        if held and not self._worth_holding(survival, view.depth):
            return False
        ahead = max(0.0, self.lead_tokens - view.depth)
        # A line is always begun: what is not tried is not learned. Whether it ever pays is for `_consider_rest`.
        reached = survival * max(self.calibration.typical, 0.9) ** ahead
        return view.depth == 0 or reached >= self.min_survival

    def _must_send(self, view: View) -> bool:
        if view.unsent >= self.block_tokens:
            return True
        if self.patience_ms:
            return False  # the block is complete when one more guess is not worth its time
        step_ms, margin_ms = self.step.median_ms, self._margin_ms()
        lands_ms = view.now_ms + self.rtt.median_ms / 2 - self._step_began_ms
        left_ms = step_ms - lands_ms % step_ms  # until the verifier takes what has arrived
        return left_ms < margin_ms + self.draft.median_ms or view.unsent_age_ms > step_ms

    def _margin_ms(self) -> float:
        return 1.5 + 0.15 * self.step.median_ms + self.rtt.spread_ms / 2

    def _worth_holding(self, survival: float, depth: int) -> bool:
        """Whether a waiting verifier should be kept waiting for one more guess.

        A guess that comes later is checked one step later. That costs a step only if it is the one that ends the line:
        with probability survival * (1 - alpha), alpha being that of its depth. Waiting for it costs the time to draw
        it.
        """
        return survival * (1 - self.calibration.at_depth(depth)) * self.step.median_ms > self.draft.median_ms

    def _patience(self) -> int:
        """How long the verifier should wait where it has no guesses, after a line has ended; 0 if it should not.

        The first block of n guesses lands ``wait`` after the step began that ended the line. A verifier that does not
        wait has by then begun ``fills + 1`` steps of its own; the block misses the last of them by little if ``wait``
        is little more than ``fills`` steps. Waiting makes up for it, and is shared out among the steps in between. With
        K right guesses before the next wrong one, a verifier that does not wait takes K + 1 steps if K <= fills, and
        fills + 2 if more; one that waits takes K + 1 longer steps if K < fills, else ``wait`` and a step, and another
        step if the block was too short.
        """
        if self._resting_tokens > 0:
            return 0
        step_ms = self.step.median_ms
        survivals = [1.0]  # of the first j guesses
        block = 1
        while block < self.block_tokens and self._worth_holding(survivals[-1], len(survivals) - 1):
            survivals.append(survivals[-1] * self.calibration.at_depth(len(survivals) - 1))
            block = len(survivals)
        wait_ms = self.rtt.median_ms + self.rtt.spread_ms + block * self.draft.median_ms + 1.0
        fills = int(wait_ms // step_ms)
        if fills > self.MAX_FILLS:
            return 0
        while len(survivals) <= fills + block:
            survivals.append(survivals[-1] * self.calibration.at_depth(len(survivals) - 1))
        patience_ms = (wait_ms - fills * step_ms) / (fills + 1)
        ends_at = [survivals[k] - survivals[k + 1] for k in range(fills + 1)]
        ended_ms = step_ms * sum((k + 1) * end for k, end in enumerate(ends_at))
        without_ms = ended_ms + step_ms * (fills + 2) * survivals[fills + 1]
        with_ms = (step_ms + patience_ms) * sum((k + 1) * end for k, end in enumerate(ends_at[:fills]))
        with_ms += survivals[fills] * (wait_ms + step_ms) + survivals[fills + block] * step_ms
        if with_ms > without_ms * (1.0 if self.patience_ms else 0.97):  # hysteresis
            return 0
        self._fills = fills
        return min(MAX_PATIENCE_MS, math.ceil(patience_ms) + 1)

    def _consider_rest(self, news: News) -> None:
        if self._resting_tokens > 0:
            self._resting_tokens -= news.new_tokens
            return
        if news.used:
            self._unused_tokens = self._drafts_since_used = 0
            self._rest = self.rest_after_tokens
            return
        self._unused_tokens += news.new_tokens
        if self._unused_tokens >= self.rest_after_tokens and self._drafts_since_used >= 8:
            self._resting_tokens = self._rest
            self._rest = min(512, self._rest * 2)
            self._unused_tokens = self.rest_after_tokens // 2
            self._drafts_since_used = 0
