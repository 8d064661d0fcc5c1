"""Watch a pace: what it decided and what it heard, event by event, without the ride knowing.

A pace is asked before every token and told of every guess and every commit, in the simulator and in the real riding
loop alike; so a wrapper around it sees the whole ride. Times are the device's clock in milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from speculation.draft_tree import Outcome
from speculation.pace.base import Action, News, Pace, View


@dataclass(frozen=True)
class Drafted:
    """Guesses were drawn at a place. position: in the log, prompt included. draft_ms: how long that took. confidence:
    of the first guess. survival: probability that all before them are right. probabilities: of each of them, if so.
    tips: at how many places guesses were drawn in that time."""

    at_ms: float
    position: int
    draft_ms: float
    confidence: float
    survival: float
    probabilities: tuple[float, ...]
    tips: int = 1


@dataclass(frozen=True)
class Sent:
    """Guesses left: `tokens` of them from `position` on, none of them when the device only asks. depth: of the line."""

    at_ms: float
    position: int
    tokens: int
    depth: int


@dataclass(frozen=True)
class Committed:
    """A commit came in. position: of its first new token. used: of the new ones, how many the drafts had right.

    outcomes: of the guesses it decided, in order. ranks: of the positions that it decided, which guess there was right,
    0 for the first, -1 for none. rtt_ms: the latest round trip, None if none was measured yet. forward_ms, queue_ms: of
    the verifier's step.
    """

    at_ms: float
    position: int
    tokens: int
    used: int
    outcomes: tuple[bool, ...]
    ranks: tuple[int, ...]
    rtt_ms: float | None
    forward_ms: float
    queue_ms: float


Event = Drafted | Sent | Committed


@dataclass
class Diary:
    """What happened on one ride, in order. began_ms: when the pace was first asked: the session is open."""

    events: list[Event] = field(default_factory=list)
    began_ms: float | None = None

    @property
    def lookahead_tokens(self) -> float | None:
        """How far past the known log a message with guesses reached, on average; None if none was sent."""
        depths = [event.depth for event in self.events if isinstance(event, Sent) and event.tokens]
        return sum(depths) / len(depths) if depths else None


class Observed(Pace):
    """Another pace, with a diary. It decides nothing itself."""

    name = "observed"

    def __init__(self, pace: Pace, diary: Diary) -> None:
        self._pace, self._diary = pace, diary
        self._view: View | None = None
        self._judged: list[tuple[int, float, float, tuple[float, ...]]] = []  # of the guesses that are being drawn
        self._told_patience_ms = pace.patience_ms
        self.objective, self.patience_ms, self.width = pace.objective, pace.patience_ms, pace.width

    def next(self, view: View) -> Action:
        diary = self._diary
        if diary.began_ms is None:
            diary.began_ms = view.now_ms
        action = self._pace.next(view)
        self.patience_ms = self._pace.patience_ms
        self._view = view
        # As in the riding loop, which also sends what there is when the verifier must hear of another patience.
        if action is Action.FLUSH or (action is Action.WAIT and self.patience_ms != self._told_patience_ms):
            self._told_patience_ms = self.patience_ms
            end = view.known_length + view.depth
            diary.events.append(Sent(view.now_ms, end - view.unsent, view.unsent, view.depth))
        return action

    def tips(self, values: Sequence[float]) -> int:
        return self._pace.tips(values)

    def drafted(self, draft_ms: float, confidence: float, tips: int = 1) -> None:
        view = self._view
        assert view is not None
        at_ms = view.now_ms + draft_ms
        for depth, survival, first, probabilities in self._judged:
            position = view.known_length + depth
            drawn = Drafted(at_ms, position, draft_ms, first, survival, probabilities, tips)
            self._diary.events.append(drawn)
        self._judged.clear()
        self._pace.drafted(draft_ms, confidence, tips)
        self.patience_ms = self._pace.patience_ms

    def judge(self, confidences: Sequence[float], depth: int, survival: float) -> Sequence[float]:
        probabilities = self._pace.judge(confidences, depth, survival)
        self._judged.append((depth, survival, confidences[0], tuple(map(float, probabilities))))
        return probabilities

    @property
    def lead_tokens(self) -> float:
        return self._pace.lead_tokens

    @property
    def typical(self) -> float:
        return self._pace.typical

    def heard(self, news: News) -> None:
        self._diary.events.append(
            Committed(
                news.now_ms,
                news.known_length - news.new_tokens,
                news.new_tokens,
                news.used,
                tuple(outcome.right for outcome in news.outcomes),
                _ranks(news.outcomes),
                news.rtt_ms,
                news.forward_ms,
                news.queue_ms,
            )
        )
        self._pace.heard(news)
        self.patience_ms = self._pace.patience_ms

    def reset(self) -> None:
        self._pace.reset()
        self.patience_ms = self._pace.patience_ms


def _ranks(outcomes: Sequence[Outcome]) -> tuple[int, ...]:
    """See `Committed`. A position begins with its first guess."""
    ranks: list[int] = []
    for outcome in outcomes:
        if outcome.rank == 0:
            ranks.append(-1)
        if outcome.right:
            ranks[-1] = outcome.rank
    return tuple(ranks)
