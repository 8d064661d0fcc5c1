"""The adaptive pace: how deep to draft, when to send, when to ask the verifier to wait, when not to draft at all.

It measures the round trip, the verifier's step, its own drafting time, and how often guesses of a given confidence and
depth are right. From these it decides, before every token:

* *Depth.* A verifier that never waits has written about ``n0 = round trip / step`` more tokens by the time a guess
  lands. A guess is worth drawing while it is likely enough that the line survives to it and past n0.
* *Sending.* The verifier takes what has arrived when a step begins; a block that lands just before that is as good as
  three that land earlier, and costs a third of the bytes.
* *Patience.* A verifier that waits for guesses that are about to land gets more of them checked per step. The device
  alone knows whether they are, so it says how long to wait: see `speculation.plan`.
* *Objective.* For `latency` a target forward costs the time it takes. For `balanced` and `capacity` it costs more: see
  `_price_ms`.
* *Rest.* If nothing it drafts is ever used (too slow, or too often wrong), it stops and tries again after a while.

Every decision changes only when tokens appear: switching in mid-answer never changes a word.
"""

from __future__ import annotations

import math

import numpy as np

from speculation.estimators import Calibration, TransferTime, Window
from speculation.pace import Action, News, Objective, Pace, View
from speculation.plan import Conditions, Plans, survival_curve

MAX_PATIENCE_MS = 2000
GUESS_BYTES = 4  # on the wire: an id and a confidence
BLOCKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
PRICES = {Objective.LATENCY: 0.0, Objective.BALANCED: 1.0, Objective.CAPACITY: 8.0}  # of a forward, in steps
JITTER_BLOCK_TOKENS = 8
LAST_MOMENT_MS = 1.0
MAX_HOPE_TOKENS = 256
HORIZON_TOKENS = 64
CREDIT_STEPS = 5.0
STAKE = 1.0


class Experience:
    """What a device has measured. Answers of one client share it, so that only the first begins with guesswork."""

    def __init__(self) -> None:
        self.rtt, self.step, self.draft = Window(16, 50.0), Window(16, 30.0), Window(32, 5.0)
        self.uplink = TransferTime()
        self.calibration = Calibration()


class Adaptive(Pace):
    """The default pace. One per session."""

    name = "adaptive"

    def __init__(
        self,
        objective: Objective = Objective.LATENCY,
        experience: Experience | None = None,
        *,
        max_depth: int = 64,
        min_survival: float = 0.01,
        block_tokens: int = 32,
        rest_after_tokens: int = 48,
    ) -> None:
        """max_depth: most guesses on the line. min_survival: least probability of counting that is worth a draft.
        block_tokens: most guesses in a message. rest_after_tokens: tokens that must come without one used guess before
        the pace rests."""
        self.objective = objective
        self.max_depth, self.min_survival = max_depth, min_survival
        self.block_tokens, self.rest_after_tokens = block_tokens, rest_after_tokens
        experience = experience or Experience()
        self.rtt, self.step, self.draft = experience.rtt, experience.step, experience.draft
        self.uplink, self.calibration = experience.uplink, experience.calibration
        self._survivals: list[float] = []  # of each guess on the line, from the log up to it
        self._sent = 0  # of the guesses on the line
        self._free_ms = 0.0  # the device's clock when the verifier ends its present step, as far as is known
        self._flushed_for_ms = 0.0  # the step of a verifier that never waits which the last block was to catch
        self._taken_next = False  # whether something will have landed by then
        self._fills = 0  # steps of its own that a patient verifier takes before a first block lands
        self._block = 1  # guesses of a block as planned
        self._began_ms: float | None = None
        self._ahead_ms = 0.0  # of plain streaming, since the first commit
        self._unused_tokens = 0
        self._drafts_since_used = 0
        self._resting_tokens = 0
        self._rest = rest_after_tokens

    # -- what it hears --------------------------------------------------------------------------------------------

    def heard(self, news: News) -> None:
        if news.rtt_ms is not None:
            self.rtt.add(news.rtt_ms)
            if news.echoed_bytes:
                self.uplink.add(news.echoed_bytes, news.rtt_ms)
        if news.forward_ms > 0:
            self.step.add(news.forward_ms + news.queue_ms)  # a full verifier serves a session every other step or so
        if self._began_ms is not None:
            self._ahead_ms += news.new_tokens * self.step.median_ms - (news.now_ms - self._began_ms)
        self._began_ms = news.now_ms
        for outcome in news.outcomes:
            self.calibration.learn(outcome)
        stands = len(news.outcomes) == news.new_tokens and all(outcome.right for outcome in news.outcomes)
        if stands:
            spent = self._survivals[news.new_tokens - 1] if news.new_tokens else 1.0
            self._survivals = [s / spent for s in self._survivals[news.new_tokens :]]
            self._sent = max(0, self._sent - news.new_tokens)
        else:
            self._survivals.clear()
            self._sent = 0
        self._taken_next = False
        self._free_ms = news.now_ms - self.rtt.median_ms / 2  # the verifier's present step began then, if one did
        self._consider_rest(news)
        self._plan()
        if not self.patience_ms or self._sent:
            self._free_ms += self.step.median_ms

    def drafted(self, draft_ms: float, confidence: float) -> None:
        self.draft.add(draft_ms)
        self._drafts_since_used += 1
        before = self._survivals[-1] if self._survivals else 1.0
        self._survivals.append(before * self.calibration.probability(confidence, len(self._survivals)))

    def reset(self) -> None:
        self._survivals.clear()
        self._sent = self.patience_ms = 0

    # -- what it decides ------------------------------------------------------------------------------------------

    def next(self, view: View) -> Action:
        action = self._decide(view)
        if action is Action.FLUSH:
            self._sent = view.depth
            self._flushed_for_ms = self._next_step_ms(view.now_ms)
            lands_ms = view.now_ms + self.rtt.median_ms / 2
            self._taken_next = lands_ms < self._free_ms
            if self.patience_ms and not self._taken_next:
                self._free_ms = lands_ms + self.step.median_ms
        return action

    def _boundary_ms(self, lands_ms: float) -> float:
        """When the verifier next takes what has landed, or when it began to wait."""
        if lands_ms > self._free_ms and self._taken_next:
            self._free_ms += self.step.median_ms
            self._taken_next = False
        return self._free_ms

    def _decide(self, view: View) -> Action:
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
        if self.patience_ms and view.unsent:  # the verifier waits for what is not sent, or soon will
            lands_ms = view.now_ms + self.guess_ms + self.rtt.median_ms / 2
            late_ms = lands_ms - self._boundary_ms(lands_ms)
            if late_ms > -self._margin_ms() and not self._worth_holding(view, late_ms):
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
        step_ms = self.step.median_ms
        if self.rtt.spread_ms > step_ms / 3:  # nobody knows when a block will land
            return view.unsent >= JITTER_BLOCK_TOKENS or view.unsent_age_ms > step_ms / 6
        begins_ms = self._next_step_ms(view.now_ms)
        left_ms = begins_ms - view.now_ms - self.rtt.median_ms / 2 - self.guess_ms  # if we draw on
        first = begins_ms > self._flushed_for_ms + step_ms / 2
        return left_ms < (self._margin_ms() if first else LAST_MOMENT_MS + self.rtt.spread_ms / 2) or view.unsent_age_ms > step_ms

    def _next_step_ms(self, now_ms: float) -> float:
        """When a verifier that never waits takes what is sent now, by the device's clock."""
        lands_ms, step_ms = now_ms + self.rtt.median_ms / 2, self.step.median_ms
        return lands_ms + step_ms - (lands_ms - self._free_ms) % step_ms

    @property
    def guess_ms(self) -> float:
        """What one more guess takes: to draw it, and to send it."""
        return self.draft.median_ms + GUESS_BYTES * self.uplink.ms_per_byte

    def _margin_ms(self) -> float:
        return 1.5 + 0.15 * self.step.median_ms + self.rtt.spread_ms / 2

    def _worth_holding(self, view: View, late_ms: float) -> bool:
        """Whether a verifier that has waited for late_ms by then should be kept waiting for one more guess.

        A guess that comes later is checked one step later. That costs a step only if it is the one that ends the line:
        with probability survival * (1 - alpha), alpha being that of its depth, and survival given that all that was
        sent before is right, for else the block is worth nothing anyway. Waiting for it costs the time to draw it.

        Where forwards cost more than their time, blocks are as long as planned, unless the guess would hardly count.
        """
        if not self._fills and late_ms > self.patience_ms - self.rtt.spread_ms - 1.0:
            return False  # it will not wait any longer
        given = self._survivals[self._sent - 1] if self._sent else 1.0
        survival = self._survivals[-1] / given if self._survivals else 1.0
        if self.objective is not Objective.LATENCY:
            return view.unsent < self._block and survival > 0.1
        return self._gain_ms(survival, view.depth) > self.guess_ms

    def _gain_ms(self, survival: float, depth: int) -> float:
        return survival * (1 - self.calibration.at_depth(depth)) * self.step.median_ms

    def _choose(self, plans: Plans) -> int:
        """Which plan is the best for the objective; the one without patience has the benefit of the doubt.

        `latency` wants the least time. `balanced` pays as much for a target forward as for its time, `capacity` more.
        Both must not be slower than plain streaming: what the answer is ahead of it, or behind, may be spent, or must
        be made up for, within the next tokens; and no single wait may stake much more than that.
        """
        step_ms = self.step.median_ms
        cost_ms = plans.ms_per_token + PRICES[self.objective] * step_ms * plans.forwards_per_token
        if self.objective is not Objective.LATENCY:
            purse_ms = self._ahead_ms + CREDIT_STEPS * step_ms
            dear = plans.ms_per_token > step_ms + purse_ms / HORIZON_TOKENS
            dear |= plans.patience_ms * (plans.fills + 1) > STAKE * purse_ms
            dear[0] = False
            cost_ms[dear] = math.inf
        cost_ms[0] *= 1.0 if self.patience_ms else 0.97  # hysteresis
        return int(np.argmin(cost_ms))

    def _plan(self) -> None:
        """Choose how long the verifier is to wait where it has no guesses, after a line has ended; 0 for not at all."""
        behind = self._ahead_ms < -CREDIT_STEPS * self.step.median_ms
        measured = self.rtt.measured and self.draft.measured
        if not measured or self._resting_tokens > 0 or (behind and self.objective is Objective.LATENCY):
            self.patience_ms = 0
            return
        depths = [self.calibration.at_depth(depth) for depth in range(self.max_depth)]
        now = Conditions(self.rtt.median_ms, self.step.median_ms, self.guess_ms, survival_curve(depths))
        blocks = (self._quick_block(now),) if self.objective is Objective.LATENCY else self._blocks()
        plans = Plans.under(now, blocks, self.rtt.spread_ms + 1.0)
        best = self._choose(plans)
        self._fills, self._block = int(plans.fills[best]), int(plans.block_tokens[best])
        patience_ms = 0
        if best:
            # Where nothing is filled meanwhile, a longer block than planned may be worth it: the device says when.
            spare_ms = 0.0 if self._fills else self._block * self.guess_ms + 0.2 * self.rtt.median_ms
            patience_ms = min(MAX_PATIENCE_MS, math.ceil(plans.patience_ms[best] + spare_ms) + 1)
        if not 0.8 * self.patience_ms < patience_ms <= 1.1 * self.patience_ms:  # a change costs a message
            self.patience_ms = patience_ms

    def _blocks(self) -> list[int]:
        """Sizes of a block for which the verifier would wait."""
        room_ms = MAX_PATIENCE_MS - 1.2 * self.rtt.median_ms - self.rtt.spread_ms
        return [block for block in BLOCKS if block == 1 or 2 * block * self.guess_ms < room_ms]

    def _quick_block(self, now: Conditions) -> int:
        """Guesses worth waiting for where only time counts, see `_worth_holding`."""
        block = 1
        while block < self.block_tokens and self._gain_ms(float(now.survivals[block]), block) > now.draft_ms:
            block += 1
        return block

    def _consider_rest(self, news: News) -> None:
        if self._resting_tokens > 0:
            self._resting_tokens -= news.new_tokens
            return
        if news.used:
            self._unused_tokens = self._drafts_since_used = 0
            self._rest = self.rest_after_tokens
            return
        self._unused_tokens += news.new_tokens
        if self._drafts_since_used >= 8 and self._unused_tokens >= self._hopeless_tokens():
            self._resting_tokens = self._rest
            self._rest = min(512, self._rest * 2)
            self._unused_tokens = self.rest_after_tokens // 2
            self._drafts_since_used = 0

    def _hopeless_tokens(self) -> float:
        """Tokens without a used guess after which there is no hope: several times what is usual over a long lead."""
        survival = self.calibration.typical**self.lead_tokens
        usual = 3 * (self.lead_tokens + 1) / survival if survival > 0.02 else 0.0
        return min(MAX_HOPE_TOKENS, max(self.rest_after_tokens, usual))
