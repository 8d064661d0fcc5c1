"""A drafter and a target, described by measured figures instead of weights.

What matters of a pair is, for every position of an answer, whether the drafter, having read everything before it, would
guess the target's token: a *hit*. Under shared noise that is a property of the position: it is the same whenever and
however often the drafter guesses there. After a wrong guess the drafter reads a text that the target never wrote, so
whatever follows on that line is of no use.

Hits come from a recorded trace (`recording`) or from a process that reproduces figures: independent hits, hits with a
measured survival P(first j guesses right), hits that get rarer as the answer goes on.

**Survival.** Acceptance is heavy-headed, not geometric: the position after a miss is hard, a position deep in a run of
hits is easy. Let S(j) be the probability that j guesses from a random position on are all right. In a renewal process
with a miss as renewal and gap G (positions from one miss to the next), S(j) = sum over n >= j of P(G > n) / E[G], so

    P(G > n) = (S(n) - S(n+1)) / (1 - S(1)),        h(n) = P(hit | n hits since the last miss) = P(G > n+1) / P(G > n),

which reproduces any measured S that is convex, exactly. Independent hits are S(j) = alpha^j.

**Confidence.** If a position is a hit with probability m given what came before, the confidence is drawn from
Beta(a + 1, b) at a hit and from Beta(a, b + 1) at a miss, with a = m s and b = (1 - m) s. Over both that is Beta(a, b),
and E[hit | confidence] = confidence. s = 1/i - 1, where i, the *informativeness*, is the share of the hits' variance
that the confidence explains: 0 says nothing but the mean, 1 would say everything.
"""

from __future__ import annotations

import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

MARGIN_TOKENS = 72  # the device does not know where an answer ends, and guesses up to a lookahead past it
DEFAULT_INFORMATIVENESS = 0.3
SHARES = (0.48, 0.16, 0.36)  # of what the first candidate leaves: the second's, the third's, all others'


@dataclass(frozen=True)
class Answer:
    """One answer, and how the drafter would do on it.

    tokens: how many the target writes. hits[i], confidences[i]: of the guess at answer position i; both reach
    MARGIN_TOKENS past the end. ranks[i]: which of the drafter's candidates there the target's token is, 0 the guess
    itself, -1 none of them; others[i]: how sure the drafter is of the candidates after the first. Both are empty for a
    drafter that has one candidate everywhere.
    """

    tokens: int
    hits: Sequence[bool]
    confidences: Sequence[float]
    ranks: Sequence[int] = ()
    others: Sequence[Sequence[float]] = ()

    def __post_init__(self) -> None:
        """Raises ValueError unless hits and confidences reach past the end."""
        if min(len(self.hits), len(self.confidences)) < self.tokens + MARGIN_TOKENS:
            raise ValueError(f"an answer of {self.tokens} tokens needs hits for {MARGIN_TOKENS} more")

    def within(self, width: int) -> Answer:
        """The same for a drafter whose first `width` candidates count as one guess, right if one of them is."""
        if not self.ranks:
            return self
        return replace(self, hits=[0 <= rank < width for rank in self.ranks])

    @property
    def alpha(self) -> float:
        """Share of hits."""
        return sum(self.hits[: self.tokens]) / self.tokens


class Pair(ABC):
    """A drafter and a target. name: for tables."""

    name: str

    @abstractmethod
    def answers(self, count: int, tokens: int, seed: int) -> list[Answer]:
        """`count` answers of at most `tokens` tokens; the same for the same arguments."""


class SurvivalPair(Pair):
    """Hits with a given survival, see the module's text."""

    def __init__(
        self, survival: Sequence[float], informativeness: float = DEFAULT_INFORMATIVENESS, name: str = ""
    ) -> None:
        """survival: S(1), S(2), ...; beyond the last it goes on geometrically. Raises ValueError if impossible."""
        if not 0 <= informativeness < 1:
            raise ValueError(f"informativeness is {informativeness:g}; it must be at least 0 and below 1")
        curve = [1.0, *survival]
        if len(curve) < 2 or not all(1 >= before >= after >= 0 for before, after in itertools.pairwise(curve)):
            raise ValueError(f"a survival falls from 1 and stays within 0 and 1; {list(survival)} does not")
        drops = [before - after for before, after in itertools.pairwise(curve)]
        if any(later > earlier + 1e-9 for earlier, later in itertools.pairwise(drops)):
            raise ValueError(f"a survival falls ever more slowly, or it belongs to no pair; {list(survival)} does not")
        ratios = [later / earlier if earlier else 1.0 for earlier, later in itertools.pairwise(drops)]
        last = survival[-1] / curve[-2] if curve[-2] else 0.0
        self._hazards = [min(1.0, ratio) for ratio in ratios] + [last]
        self._informativeness = informativeness
        self.name = name or f"survival {survival[0]:g}"

    def answers(self, count: int, tokens: int, seed: int) -> list[Answer]:
        return [self._answer(tokens, random.Random(f"{seed}/{index}")) for index in range(count)]

    def _answer(self, tokens: int, rng: random.Random) -> Answer:
        hits: list[bool] = []
        confidences: list[float] = []
        hazards, last = self._hazards, len(self._hazards) - 1
        run = 0
        for _ in range(tokens + MARGIN_TOKENS):
            # The first position of an answer is as hard as one after a miss.
            mean = hazards[min(run, last)]
            hit = rng.random() < mean
            hits.append(hit)
            confidences.append(_confidence(mean, hit, self._informativeness, rng))
            run = run + 1 if hit else 0
        return _with_others(tokens, hits, confidences)


def independent(alpha: float, informativeness: float = DEFAULT_INFORMATIVENESS) -> SurvivalPair:
    """Every guess right with probability alpha, whatever came before. Raises ValueError unless 0 <= alpha <= 1."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha:g}; a share of right guesses lies between 0 and 1")
    return SurvivalPair([alpha], informativeness, f"alpha {alpha:g}")


def heavy_headed(alpha: float, informativeness: float = DEFAULT_INFORMATIVENESS, depth: int = 48) -> SurvivalPair:
    """Share alpha of right guesses in all, fewer after a miss and more in a run.

    Half of the text is easy, with a quarter of the misses: a mixture of two geometric survivals. Raises ValueError
    unless 0 <= alpha <= 1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha:g}; a share of right guesses lies between 0 and 1")
    hard = max(0.0, 1 - 1.5 * (1 - alpha))
    easy = 2 * alpha - hard
    curve = [(easy**j + hard**j) / 2 for j in range(1, depth + 1)]
    return SurvivalPair(curve, informativeness, f"heavy {alpha:g}")


class DriftingPair(Pair):
    """Independent hits whose share moves evenly from one value to another over the answer, as 2605.09329 reports."""

    def __init__(self, first: float, last: float, informativeness: float = DEFAULT_INFORMATIVENESS) -> None:
        """Raises ValueError unless both shares lie between 0 and 1."""
        if not (0 <= first <= 1 and 0 <= last <= 1):
            raise ValueError(f"shares of right guesses lie between 0 and 1, not {first:g} and {last:g}")
        self._first, self._last, self._informativeness = first, last, informativeness
        self.name = f"drift {first:g} to {last:g}"

    def answers(self, count: int, tokens: int, seed: int) -> list[Answer]:
        return [self._answer(tokens, random.Random(f"{seed}/{index}")) for index in range(count)]

    def _answer(self, tokens: int, rng: random.Random) -> Answer:
        hits: list[bool] = []
        confidences: list[float] = []
        for position in range(tokens + MARGIN_TOKENS):
            mean = self._first + (self._last - self._first) * min(1.0, position / tokens)
            hits.append(rng.random() < mean)
            confidences.append(_confidence(mean, hits[-1], self._informativeness, rng))
        return _with_others(tokens, hits, confidences)


def _confidence(mean: float, hit: bool, informativeness: float, rng: random.Random) -> float:
    """See the module's text. mean: P(hit) given what came before."""
    if informativeness == 0 or mean in (0.0, 1.0):
        return mean
    strength = 1 / informativeness - 1
    return rng.betavariate(mean * strength + hit, (1 - mean) * strength + (not hit))


def _with_others(tokens: int, hits: Sequence[bool], confidences: Sequence[float]) -> Answer:
    """An answer whose drafter has further candidates, which share what the first one leaves.

    Of the misses of the demo pair at T = 0.8 the second candidate is right in .48 and the third in .16
    (`netlab record`; docs/pace.md).
    """
    rng = random.Random(f"{tokens}/{confidences[:4]}")
    ranks = [0 if hit else rng.choices((1, 2, -1), SHARES)[0] for hit in hits]
    others = [[(1 - confidence) * share for share in SHARES[:2]] for confidence in confidences]
    return Answer(tokens, hits, confidences, ranks, others)


class RecordedPair(Pair):
    """Answers as recorded, over and over if more are asked for than there are."""

    def __init__(
        self,
        hits: Sequence[Sequence[bool]],
        confidences: Sequence[Sequence[float]],
        name: str,
        ranks: Sequence[Sequence[int]] = (),
        others: Sequence[Sequence[Sequence[float]]] = (),
    ) -> None:
        """hits[n][i], confidences[n][i] and so on: of answer n at position i. Raises ValueError if there are none."""
        if not hits:
            raise ValueError(f"{name} holds no answers")
        self._hits, self._confidences, self.name = hits, confidences, name
        self._ranks, self._others = ranks, others

    def answers(self, count: int, tokens: int, seed: int) -> list[Answer]:
        """Answers from number `seed` on, each cut at `tokens`.

        Past its end an answer continues as it began: what is guessed there is never evaluated, but has a confidence.
        """
        return [self._answer((seed + index) % len(self._hits), tokens) for index in range(count)]

    def _answer(self, index: int, tokens: int) -> Answer:
        hits, confidences = list(self._hits[index]), list(self._confidences[index])
        length = min(tokens, len(hits))
        turns = (length + MARGIN_TOKENS) // len(hits) + 1
        if not self._ranks:
            return Answer(length, hits * turns, confidences * turns)
        ranks, others = list(self._ranks[index]), list(self._others[index])
        return Answer(length, hits * turns, confidences * turns, ranks * turns, others * turns)
