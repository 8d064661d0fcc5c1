"""What the scheduler counts: plain numbers, for whoever exports them.

Counters only grow while a verifier lives; gauges are as of the latest step. The scheduler is the only writer, on the
event loop; readers on the same loop need no lock.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class LatestStep:
    """For histograms: number tells whether there was another step since the last look."""

    number: int = 0
    step_s: float = 0.0
    sessions: int = 0
    positions: int = 0


@dataclass
class Counters:
    """Of one model's scheduler.

    Counters. steps: forwards. step_s: time spent in them. prompt_positions: tokens of prompts (and of logs that are
    read again) evaluated; pending_positions: the last token of a log, once for each step that went on with it;
    draft_positions: guesses checked; own_positions, own_accepted_tokens: the verifier's own, checked and right.
    drafts: times that guesses of a
    session were checked; accepted_tokens: of the guesses, those that were right, and accepted_by_position: by place in
    what was checked at once. fills: times that there were none. trimmed_draft_tokens: guesses that a step had no room
    for. prefix_query_tokens:
    tokens of sequences that were opened; prefix_hit_tokens: those of them that had been evaluated before. preemptions:
    sessions whose keys and values were given up for another's.

    Gauges. sessions_in_step: of the latest step. sessions_waiting: that were due but got no part in it. pages_*: of the
    pool of keys and values: used by open sequences, cached (kept for sequences with the same beginning, free for any
    other), free.
    """

    steps: int = 0
    step_s: float = 0.0
    prompt_positions: int = 0
    pending_positions: int = 0
    draft_positions: int = 0
    own_positions: int = 0
    own_accepted_tokens: int = 0
    trimmed_draft_tokens: int = 0
    drafts: int = 0
    fills: int = 0
    accepted_tokens: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    sessions_in_step: int = 0
    sessions_waiting: int = 0
    pages_used: int = 0
    pages_cached: int = 0
    pages_free: int = 0
    latest: LatestStep = LatestStep()
    accepted_by_position: list[int] = field(default_factory=list)

    def judged(self, guesses: int, accepted: int) -> None:
        """A session's guesses were checked, and so many of them were right; without guesses it was a fill."""
        if not guesses:
            self.fills += 1
            return
        self.drafts += 1
        self.accepted_tokens += accepted
        by_position = self.accepted_by_position
        by_position.extend([0] * (accepted - len(by_position)))
        for position in range(accepted):
            by_position[position] += 1

    @property
    def pages_total(self) -> int:
        """Pages of the pool; 0 for an engine that does not say."""
        return self.pages_used + self.pages_cached + self.pages_free
