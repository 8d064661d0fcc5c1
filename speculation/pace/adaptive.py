"""The adaptive pace: how deep to draft, when to send, when to ask the verifier to wait, when not to draft at all.

It measures the round trip, the verifier's step, its own drafting time, and how often guesses of a given confidence and
depth are right. From these it decides, before every token:

* *Depth.* A verifier that never waits has written about ``n0 = round trip / step`` more tokens by the time a guess
  lands. A guess is worth drawing while it is likely enough that the line survives to it and past n0.
* *Sending.* The verifier takes what has arrived when a step begins; a block that lands just before that is as good as
  three that land earlier, and costs a third of the bytes.
* *Patience.* A verifier that waits for guesses that are about to land gets more of them checked per step. The device
  alone knows whether they are, so it says how long to wait: see `speculation.pace.plan`.
* *Objective.* For `latency` a target forward costs the time it takes. For `balanced` and `capacity` it costs more: see
  `_price_ms`.
* *Rest.* If nothing it drafts is ever used (too slow, or too often wrong), it stops and tries again after a while.

Every decision changes only when tokens appear: switching in mid-answer never changes a word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from speculation.pace.base import Action, News, Objective, Pace, View
from speculation.pace.experience import GUESS_BYTES, Experience
from speculation.pace.plan import Conditions, Plans, survival_curve
from speculation.pace.rest import Rest
from speculation.pace.step_clock import StepClock
from speculation.pace.time_account import TimeAccount

MAX_PATIENCE_MS = 2000
BLOCKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
TREE_BLOCKS = (48, 64)  # and these, where guesses branch
QUICK_DRAWS = 8  # in a step, from which on blocks are planned as trees where forwards are dear
BLOCK_SHARE = 1.5  # guesses in a block of a tree, for each place that was planned
TREE_TOKENS = 128  # most guesses in a message, where it is worth more to wait for them
PRICES = {Objective.LATENCY: 0.0, Objective.BALANCED: 1.0, Objective.CAPACITY: 8.0}  # of a forward, in steps
JITTER_BLOCK_TOKENS = 8
LAST_MOMENT_MS = 1.0
FORK_BYTES = GUESS_BYTES + 1  # on the wire: what it hangs on, too
THIN = 0.02  # steps that a guess takes on the uplink from which on only lines are drawn
QUEUE = 0.5  # steps that round trips take longer than the shortest, as from a queue of one's own messages
LEAST_OF_LINES = 0.01  # least probability of counting that is worth a guess where nothing branches
SECOND_BLOCK = 0.05  # least probability that a block matters which follows another before the verdict on that one


class Adaptive(Pace):
    """The default pace. One per session."""

    name = "adaptive"

    def __init__(
        self,
        objective: Objective = Objective.LATENCY,
        experience: Experience | None = None,
        *,
        max_depth: int = 64,
        min_survival: float = 0.02,
        block_tokens: int = 32,
        rest_after_tokens: int = 48,
        width: int = 2,
        min_fork: float = 0.02,
    ) -> None:
        """max_depth: most guesses on a path. min_survival: least probability of counting that is worth a draft where
        guesses branch: a likelier place turns up sooner or later. width: most guesses at one place; 1 draws lines.
        min_fork: least probability of a second guess that is worth its bytes. block_tokens: most guesses in a message.
        rest_after_tokens: tokens that must come without one used guess before the pace rests."""
        self.objective = objective
        self.max_depth, self.block_tokens = max_depth, block_tokens
        self.min_survival, self.width, self.min_fork = min_survival, width, min_fork
        self.known = experience or Experience()
        self._clock, self._rest = StepClock(), Rest(rest_after_tokens)
        self._fills = 0  # steps of its own that a patient verifier takes before a first block lands
        self._block = 1  # guesses of a block as planned
        self._worth = 0.0  # of being right: what a guess must be worth to be waited for, 0 on a line
        self._branches = True  # whether the verifier takes guesses that branch, as far as known
        self._budget = 64  # of the verifier, as it said last
        self._account = TimeAccount(self.known.ahead_ms)
        self._plan()

    # -- what it hears --------------------------------------------------------------------------------------------

    def heard(self, news: News) -> None:
        known = self.known
        known.heard(news, waited=self.patience_ms > 0)
        if self._account.heard(news.now_ms, news.new_tokens, known.token_ms):
            known.ahead_ms = self._account.ahead_ms
        self._rest.heard(news.new_tokens, news.used, known.calibration.typical, self.lead_tokens, news.outcomes)
        self._plan()
        goes_on = not self.patience_ms or news.standing > 0
        self._clock.heard(news.now_ms, known.rtt.median_ms, known.step.median_ms, goes_on=goes_on)

    def tips(self, values: Sequence[float]) -> int:
        """As many as raise what is expected to count per time."""
        known = self.known
        total, taken_ms, tip_ms = values[0], known.draft.median_ms, known.tip_ms
        count = 1
        for value in values[1:]:
            if value < self.min_survival or value * taken_ms < total * tip_ms:
                break
            total, taken_ms, count = total + value, taken_ms + tip_ms, count + 1
        return count

    def drafted(self, draft_ms: float, confidence: float, tips: int = 1) -> None:
        self.known.drafted(draft_ms, tips)
        self._rest.drafted()

    def judge(self, confidences: Sequence[float], depth: int, survival: float) -> Sequence[float]:
        calibration = self.known.calibration
        first = calibration.probability(confidences[0], depth)
        if len(confidences) == 1:
            return (first,)
        found, left = [first], 1.0 - first
        # Of so many places for guesses the worst is worth about so little.
        least = max(self.min_fork, 1.0 / max(1, self._budget)) if self._forks else 1.0
        for rank, confidence in enumerate(confidences[1:], 1):
            probability = min(left, calibration.probability(confidence, depth, rank))
            if survival * probability < least:
                break
            found.append(probability)
            left -= probability
        return found

    @property
    def _forks(self) -> bool:
        """Whether second guesses may be worth their bytes: not where those take a part of a step that counts."""
        known = self.known
        thin = FORK_BYTES * known.uplink.ms_per_byte > THIN * known.step.median_ms
        queues = known.rtt.median_ms - known.rtt.least_ms > QUEUE * known.step.median_ms
        return self.width > 1 and not (thin or queues)

    def reset(self) -> None:
        self.patience_ms = 0

    # -- what it decides ------------------------------------------------------------------------------------------

    def next(self, view: View) -> Action:
        self._budget, self._branches = view.budget, view.branches
        action = self._decide(view)
        if action is Action.FLUSH:
            known = self.known
            self._clock.sent(view.now_ms, known.rtt.median_ms, known.step.median_ms, waits=self.patience_ms > 0)
        return action

    def _decide(self, view: View) -> Action:
        if view.unsent and self._must_send(view):
            return Action.FLUSH
        if self._worth_drafting(view):
            return Action.DRAFT
        return Action.FLUSH if view.unsent and self._may_count(view) else Action.WAIT

    @property
    def typical(self) -> float:
        """How likely a guess is right that is yet to be drawn; at least .9, for what is not tried is not learned."""
        return max(self.known.calibration.typical, 0.9)

    @property
    def lead_tokens(self) -> float:
        """n0: tokens the verifier will have written past the log as known when a guess drawn now lands."""
        return self._fills if self.patience_ms else self.known.rtt.median_ms / self.known.token_ms

    def _worth_drafting(self, view: View) -> bool:
        if not view.can_draft or view.depth >= self.max_depth or view.nodes >= view.budget or self._rest.resting:
            return False
        known = self.known
        if self.patience_ms and view.unsent:  # the verifier waits for what is not sent, or soon will
            lands_ms = view.now_ms + known.guess_ms + known.rtt.median_ms / 2
            waited_ms = self._clock.waited_ms(lands_ms, known.step.median_ms)
            if waited_ms > -self._margin_ms() and not self._worth_holding(view, waited_ms):
                return False
        # A line is always begun: what is not tried is not learned. Whether it ever pays is for `Rest`.
        return view.depth == 0 or view.value >= (self.min_survival if view.branches and self._forks else LEAST_OF_LINES)

    def _must_send(self, view: View) -> bool:
        if view.unsent >= (TREE_TOKENS if self._worth else self.block_tokens):
            return True
        if self.patience_ms:
            return False  # the block is complete when one more guess is not worth its time
        rtt, step_ms = self.known.rtt, self.known.step.median_ms
        if rtt.spread_ms > step_ms / 3:  # nobody knows when a block will land
            return view.unsent >= JITTER_BLOCK_TOKENS or view.unsent_age_ms > step_ms / 6
        begins_ms = self._clock.next_step_ms(view.now_ms, rtt.median_ms, step_ms)
        left_ms = begins_ms - view.now_ms - rtt.median_ms / 2 - self.known.guess_ms  # if we draw on
        blocks = self._clock.blocks_for(begins_ms, step_ms)
        if blocks > 1 or (blocks and self._ends_unsent(view) < SECOND_BLOCK):
            return view.unsent_age_ms > step_ms
        spare_ms = LAST_MOMENT_MS + rtt.spread_ms / 2 if blocks else self._margin_ms()
        return left_ms < spare_ms or view.unsent_age_ms > step_ms

    def _may_count(self, view: View) -> bool:
        """Whether what was sent may well be right, so that a waiting verifier can use what follows."""
        return not (self.patience_ms and view.sent) or view.sent_mass >= SECOND_BLOCK

    def _ends_unsent(self, view: View) -> float:
        """Probability that the tree ends at one of the unsent guesses: what a step that lacks them would not find out.

        Guesses that are right lose nothing by coming a step later, in a message that leaves anyway.
        """
        return view.sent_mass - view.open_mass

    def _margin_ms(self) -> float:
        return 1.5 + 0.15 * self.known.step.median_ms + self.known.rtt.spread_ms / 2

    def _worth_holding(self, view: View, waited_ms: float) -> bool:
        """Whether a verifier that will have waited so long should be kept waiting for one more guess.

        A guess that comes later is checked one step later. That costs a step only if it is the one that ends the line:
        with probability survival * (1 - alpha), alpha being that of its depth, and survival given that all that was
        sent before is right, for else the block is worth nothing anyway. Waiting for it costs the time to draw it.

        Where forwards cost more than their time, blocks are as long as planned, unless the guess would hardly count. Of
        trees they are as large as guesses are worth their time, where the price of a forward counts, too.
        """
        if not self._fills and waited_ms > self.patience_ms - self.known.rtt.spread_ms - 1.0:
            return False  # it will not wait any longer
        survival = min(1.0, view.survival / max(view.sent_mass, 1e-9))
        if self._worth:
            return survival > self._worth and view.unsent < BLOCK_SHARE * self._block
        if self.objective is not Objective.LATENCY:
            return view.unsent < self._block and survival > 0.1
        return self._gain_ms(survival, view.depth) > self.known.guess_ms

    def _gain_ms(self, survival: float, depth: int) -> float:
        return survival * (1 - self.known.calibration.at_depth(depth)) * self.known.step.median_ms

    def _plan(self) -> None:
        """Choose how long the verifier is to wait where it has no guesses, after a line has ended; 0 for not at all."""
        known = self.known
        behind = self._account.behind(known.token_ms)
        if not known.measured or self._rest.resting or (behind and self.objective is Objective.LATENCY):
            self.patience_ms, self._worth = 0, 0.0
            return
        depths = [known.calibration.at_depth(depth) for depth in range(self.max_depth)]
        now = Conditions(known.rtt.median_ms, known.step.median_ms, known.guess_ms, survival_curve(depths))
        # A device that draws few guesses in a step has none to spare for second paths.
        quick = QUICK_DRAWS * known.draw_ms < known.step.median_ms
        trees = quick and self.objective is Objective.CAPACITY and self._branches and self._forks
        if trees:
            now = replace(now, draft_ms=known.draw_ms, second=known.calibration.second)
        blocks = (self._quick_block(now),) if self.objective is Objective.LATENCY else self._blocks(now)
        plans = Plans.under(now, blocks, known.rtt.spread_ms + 1.0)
        best = self._choose(plans)
        self._worth = 0.0
        if trees and best:  # a guess adds as many tokens as it is likely to be right, for the time that it takes
            price_ms = PRICES[self.objective] * known.step.median_ms
            cost_ms = plans.ms_per_token[best] + price_ms * plans.forwards_per_token[best]
            self._worth = max(LEAST_OF_LINES, now.draft_ms / float(cost_ms))
        self._fills, self._block = int(plans.fills[best]), int(plans.block_tokens[best])
        patience_ms = 0
        if best:
            # Where nothing is filled meanwhile, a longer block than planned may be worth it: the device says when.
            spare_ms = 0.0 if self._fills else self._block * now.draft_ms + 0.2 * known.rtt.median_ms
            patience_ms = min(MAX_PATIENCE_MS, math.ceil(plans.patience_ms[best] + spare_ms) + 1)
        if not 0.8 * self.patience_ms < patience_ms <= 1.1 * self.patience_ms:  # a change costs a message
            self.patience_ms = patience_ms

    def _choose(self, plans: Plans) -> int:
        """Which plan is the best for the objective; the one without patience has the benefit of the doubt.

        `latency` wants the least time. `balanced` pays as much for a target forward as for its time, `capacity` ever
        more, the further the answer is ahead of streaming.
        Both must not be slower than plain streaming, see `TimeAccount`.
        """
        step_ms = self.known.step.median_ms
        price_ms = PRICES[self.objective] * step_ms
        if self.objective is Objective.CAPACITY:
            price_ms = max(price_ms, self._account.ahead_ms)  # time that was gained may go
        cost_ms = plans.ms_per_token + price_ms * plans.forwards_per_token
        if (alone := self.known.fill_tokens) > 1.0:  # the verifier does not need the device for that
            cost_ms[0] = min(cost_ms[0], self.known.token_ms + price_ms / alone)
        if self.objective is not Objective.LATENCY:
            cost_ms[self._account.too_dear(plans, step_ms)] = math.inf
        cost_ms[0] *= 1.0 if self.patience_ms else 0.97  # hysteresis
        return int(np.argmin(cost_ms))

    def _blocks(self, now: Conditions) -> list[int]:
        """Sizes of a block for which the verifier would wait."""
        room_ms = MAX_PATIENCE_MS - 1.2 * self.known.rtt.median_ms - self.known.rtt.spread_ms
        blocks = (*BLOCKS, *TREE_BLOCKS) if now.second else BLOCKS
        return [block for block in blocks if block == 1 or 2 * block * now.draft_ms < room_ms]

    def _quick_block(self, now: Conditions) -> int:
        """Guesses worth waiting for where only time counts, see `_worth_holding`."""
        block = 1
        while block < self.block_tokens and self._gain_ms(float(now.survivals[block]), block) > now.draft_ms:
            block += 1
        return block
