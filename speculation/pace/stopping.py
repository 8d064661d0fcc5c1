"""Synchronous rounds of the length that gives the most tokens per time.

A renewal argument (2606.20591): with P(j) the probability that the first j guesses of a round are right, c the time to
draw one more, and lambda the tokens per millisecond that rounds have given so far, one more guess is worth its time iff
P(j + 1) >= lambda * c. The round trip enters through lambda only: the longer a round takes whatever its length, the
longer it should be.
"""

from __future__ import annotations

from speculation.pace.base import PATIENCE_UNLIMITED_MS, Action, News, Pace, View
from speculation.pace.estimators import Calibration, Window


class OptimalRounds(Pace):
    """Draft while one more guess raises the throughput, send, wait for the verdict. One per session."""

    name = "sync"
    patience_ms = PATIENCE_UNLIMITED_MS
    FADE = 0.95

    def __init__(self, max_tokens: int = 32) -> None:
        """max_tokens: of a round."""
        self._max_tokens = max_tokens
        self._draft = Window(32, 5.0)
        self._calibration = Calibration()
        self._survival, self._depth = 1.0, 0  # of the present round
        self._tokens, self._time_ms = 4.0, 200.0  # of the rounds so far, old ones faded; a modest prior
        self._began_ms: float | None = None

    def next(self, view: View) -> Action:
        if view.in_flight:
            return Action.WAIT
        rate = self._tokens / self._time_ms
        hopes = self._survival * self._calibration.at_depth(view.depth)
        # A round has at least one guess: what is not tried is not learned.
        worth = view.depth == 0 or hopes >= rate * self._draft.median_ms
        if worth and view.can_draft and view.depth < min(self._max_tokens, view.budget):
            return Action.DRAFT
        return Action.FLUSH  # an empty flush asks the waiting verifier for a token of its own

    def drafted(self, draft_ms: float, confidence: float, tips: int = 1) -> None:
        self._draft.add(draft_ms)
        self._depth += 1
        self._survival *= self._calibration.probability(confidence, self._depth - 1)

    def heard(self, news: News) -> None:
        for outcome in news.outcomes:
            self._calibration.learn(outcome)
        if self._began_ms is not None:
            self._tokens = self.FADE * self._tokens + news.new_tokens
            self._time_ms = self.FADE * self._time_ms + news.now_ms - self._began_ms
        self._began_ms = news.now_ms
        self.reset()

    def reset(self) -> None:
        self._survival, self._depth = 1.0, 0
