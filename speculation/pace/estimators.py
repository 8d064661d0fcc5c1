"""What a pace measures: times by window, and how often guesses of a given confidence and depth are right."""

from __future__ import annotations

import itertools
import statistics
from bisect import bisect_right
from collections import deque

from speculation.draft_tree import Outcome


class Window:
    """The last few samples of a time, in milliseconds: median_ms, least_ms, and late_ms, the 95th percentile."""

    def __init__(self, size: int, prior_ms: float) -> None:
        """prior_ms: what is assumed before the first sample."""
        self._samples: deque[float] = deque(maxlen=size)
        self.median_ms = self.least_ms = self.late_ms = prior_ms

    def add(self, sample_ms: float) -> None:
        """Take a sample."""
        self._samples.append(sample_ms)
        ordered = sorted(self._samples)
        half = len(ordered) // 2
        self.median_ms = (ordered[half] + ordered[~half]) / 2
        self.least_ms = ordered[0]
        self.late_ms = ordered[min(len(ordered) - 1, (len(ordered) * 19) // 20)]

    @property
    def measured(self) -> bool:
        """Whether there was a sample at all."""
        return bool(self._samples)

    @property
    def spread_ms(self) -> float:
        """How much later than usual a careful planner reckons with."""
        return self.late_ms - self.median_ms


class TransferTime:
    """How long a byte takes through the slowest part of a link, from round trips of messages of different sizes.

    The median of the slopes between pairs of samples (Theil and Sen): one late message in three moves it little.
    """

    WINDOW, EVERY = 24, 6
    LEAST_SPREAD_BYTES = 16  # messages of much the same size say nothing of the rate

    def __init__(self) -> None:
        self._samples: deque[tuple[int, float]] = deque(maxlen=self.WINDOW)
        self._count = 0
        self.ms_per_byte = 0.0

    def add(self, size_bytes: int, rtt_ms: float) -> None:
        """Take the round trip of a message of this size."""
        self._samples.append((size_bytes, rtt_ms))
        self._count += 1
        if len(self._samples) < self.WINDOW // 2 or self._count % self.EVERY:
            return
        slopes = [
            (late_ms - early_ms) / (large - small)
            for (small, early_ms), (large, late_ms) in itertools.permutations(self._samples, 2)
            if large - small >= self.LEAST_SPREAD_BYTES
        ]
        if slopes:
            self.ms_per_byte = max(0.0, statistics.median(slopes))


class Calibration:
    """Turns a drafter's confidence into the probability that the guess is right, given that all before it are.

    Counts hits by bins of confidence, and corrects by the depth at which a guess was drawn, for acceptance is
    heavy-headed (2606.20591). Old outcomes fade, because acceptance drifts within an answer (2605.09329).
    """

    CONFIDENCE_EDGES = (0.3, 0.5, 0.65, 0.8, 0.9, 0.96, 0.99)
    DEPTH_EDGES = (1, 2, 4, 8, 16)
    OTHER_EDGES = (0.02, 0.05, 0.1, 0.2, 0.35)  # of guesses that are not the first at their place
    PRIOR_WEIGHT = 6.0
    FADE = 0.99

    def __init__(self) -> None:
        self._hits = [0.0] * (len(self.CONFIDENCE_EDGES) + 1)
        self._trials = [0.0] * (len(self.CONFIDENCE_EDGES) + 1)
        self._depth_hits = [0.0] * (len(self.DEPTH_EDGES) + 1)
        self._depth_hoped = [0.0] * (len(self.DEPTH_EDGES) + 1)
        self._depth_trials = [0.0] * (len(self.DEPTH_EDGES) + 1)
        self._other_hits = [0.0] * (len(self.OTHER_EDGES) + 1)
        self._other_trials = [0.0] * (len(self.OTHER_EDGES) + 1)
        self.typical = 0.75
        self.second = 0.1  # how often a guess that is not the first at its place is right

    def probability(self, confidence: float, depth: int, rank: int = 0) -> float:
        """Of a guess being right, in (0, 1), if all before it are. rank: see `Outcome`."""
        if rank:
            bin_ = bisect_right(self.OTHER_EDGES, confidence)
            hits = self._other_hits[bin_] + self.PRIOR_WEIGHT * min(0.5, confidence)
            return min(0.999, max(0.001, hits / (self._other_trials[bin_] + self.PRIOR_WEIGHT)))
        near, far = bisect_right(self.DEPTH_EDGES, depth), self.PRIOR_WEIGHT
        factor = (self._depth_hits[near] + far) / (self._depth_hoped[near] + far)
        return min(0.999, max(0.001, self._by_confidence(confidence) * factor))

    def at_depth(self, depth: int) -> float:
        """Probability that a guess yet to be drawn at this depth is right, given that all before it are."""
        near = bisect_right(self.DEPTH_EDGES, depth)
        hits = self._depth_hits[near] + self.PRIOR_WEIGHT * self.typical
        return hits / (self._depth_trials[near] + self.PRIOR_WEIGHT)

    def _by_confidence(self, confidence: float) -> float:
        bin_ = bisect_right(self.CONFIDENCE_EDGES, confidence)
        # Drafters are a little too sure of themselves when sure, and too modest when not.
        prior = 0.1 + 0.87 * confidence
        return (self._hits[bin_] + self.PRIOR_WEIGHT * prior) / (self._trials[bin_] + self.PRIOR_WEIGHT)

    def learn(self, outcome: Outcome) -> None:
        """Take the outcome of one guess."""
        if outcome.rank:
            self.second += 0.03 * outcome.right
            bin_ = bisect_right(self.OTHER_EDGES, outcome.confidence)
            self._other_hits[bin_] = self.FADE * self._other_hits[bin_] + outcome.right
            self._other_trials[bin_] = self.FADE * self._other_trials[bin_] + 1
            return
        hoped = self._by_confidence(outcome.confidence)
        bin_ = bisect_right(self.CONFIDENCE_EDGES, outcome.confidence)
        near = bisect_right(self.DEPTH_EDGES, outcome.depth)
        self._hits[bin_] = self.FADE * self._hits[bin_] + outcome.right
        self._trials[bin_] = self.FADE * self._trials[bin_] + 1
        self._depth_hits[near] = self.FADE * self._depth_hits[near] + outcome.right
        self._depth_trials[near] = self.FADE * self._depth_trials[near] + 1
        self._depth_hoped[near] = self.FADE * self._depth_hoped[near] + hoped
        self.second -= 0.03 * self.second
        self.typical += 0.03 * (outcome.right - self.typical)
