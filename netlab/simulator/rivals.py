"""The field's own rules for how long a draft should be, as paces.

All but the last are rounds led by the device: draft until the rule says stop, send, wait for the verdict. They are
implemented from their published rules with their published defaults; what a rule needs and a described pair does not
have (the drafter's full entropy, a trained head) is replaced by the drafter's confidence, and each class says so. A
pace cannot take a guess back, so a guess that makes a rule stop is sent with the others; it costs its bytes only.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

from speculation.pace.base import PATIENCE_UNLIMITED_MS, Action, News, Pace, View


class Rounds(Pace):
    """A round: draft while `more` says so, send, wait. confidences: of the round's guesses so far."""

    patience_ms = PATIENCE_UNLIMITED_MS
    max_tokens: ClassVar[int] = 20  # of a round; transformers' default

    def __init__(self) -> None:
        self.confidences: list[float] = []

    def next(self, view: View) -> Action:
        if view.in_flight:
            return Action.WAIT
        if view.can_draft and view.depth < min(self.max_tokens, view.budget) and self.more(view.depth):
            return Action.DRAFT
        return Action.FLUSH  # an empty one asks the waiting verifier for a token of its own

    @abstractmethod
    def more(self, depth: int) -> bool:
        """Whether to draw another guess after `depth` of them."""

    def drafted(self, draft_ms: float, confidence: float, tips: int = 1) -> None:
        self.confidences.append(confidence)

    def heard(self, news: News) -> None:
        self.confidences.clear()

    def reset(self) -> None:
        self.confidences.clear()


class Heuristic(Rounds):
    """transformers' schedule "heuristic": two more after a round that was all right, else one less, at least one.

    transformers 5.23, `AssistedCandidateGenerator.update_candidate_strategy`; it began at 5 before it began at 20.
    """

    name = "heuristic"
    max_tokens = 64

    def __init__(self, first: int = 5) -> None:
        super().__init__()
        self._tokens = first

    def more(self, depth: int) -> bool:
        return depth < self._tokens

    def heard(self, news: News) -> None:
        if news.outcomes:  # not the prompt's first token
            all_right = all(outcome.right for outcome in news.outcomes)
            self._tokens = self._tokens + 2 if all_right else max(1, self._tokens - 1)
        super().heard(news)


class ConfidenceThreshold(Rounds):
    """Stop after a guess whose probability is below a threshold.

    transformers' `assistant_confidence_threshold` (0.4 by default; its adaptation by ROC curve needs the drafter's
    scores of whole rounds and is left out), and llama.cpp's `p_min` (0.75 until its default became 0, see
    ggml-org/llama.cpp#26100, and at most 16 tokens).
    """

    name = "confidence"

    def __init__(self, threshold: float = 0.4, max_tokens: int = 20) -> None:
        super().__init__()
        self._threshold, self._max_tokens = threshold, max_tokens

    def more(self, depth: int) -> bool:
        return depth < self._max_tokens and (not self.confidences or self.confidences[-1] >= self._threshold)


class EntropyBound(Rounds):
    """AdaEDL (2410.18351): stop when the bound 1 - sqrt(gamma H(q)) on acceptance falls below a threshold.

    H is not in the trace: the least entropy (in nats) of a distribution whose favourite has the drafter's confidence
    stands for it, that of two tokens. The threshold here is fixed, as in SVIP (2411.18462), whose bound has the same
    form; AdaEDL moves it slowly with the acceptance it sees.
    """

    name = "entropy"

    def __init__(self, threshold: float = 0.4, gamma: float = 0.2) -> None:
        super().__init__()
        self._threshold, self._gamma = threshold, gamma

    def more(self, depth: int) -> bool:
        if not self.confidences:
            return True
        c = min(1 - 1e-9, max(1e-9, self.confidences[-1]))
        entropy = -c * math.log(c) - (1 - c) * math.log(1 - c)
        if c < 0.5:  # two tokens cannot be that even; n equal ones are
            entropy = -math.log(c)
        return 1 - math.sqrt(self._gamma * entropy) >= self._threshold


class SpecDecPlusPlus(Rounds):
    """SpecDec++ (2405.19715): stop when the probability that any guess is wrong exceeds a threshold.

    Its trained acceptance head is replaced by the drafter's confidence, which is calibrated for described pairs.
    """

    name = "specdec++"

    def __init__(self, threshold: float = 0.7) -> None:
        super().__init__()
        self._threshold = threshold

    def more(self, depth: int) -> bool:
        return 1 - math.prod(self.confidences) <= self._threshold


class Arms:
    """What UCB-SpecStop has learnt of each draft length: rounds, tokens and time. Shared by the answers of one run."""

    def __init__(self, most: int = 16) -> None:
        self.rounds, self.tokens, self.time_ms = [0] * (most + 1), [0] * (most + 1), [0.0] * (most + 1)

    def pick(self) -> int:
        """The draft length to try next: each once, then the best upper confidence bound on tokens per millisecond."""
        arms = range(1, len(self.rounds))
        for arm in arms:
            if not self.rounds[arm]:
                return arm
        total = sum(self.rounds)
        best_rate = max(self.tokens[arm] / self.time_ms[arm] for arm in arms)

        def bound(arm: int) -> float:
            rate = self.tokens[arm] / self.time_ms[arm]
            return rate + 0.1 * best_rate * math.sqrt(2 * math.log(total) / self.rounds[arm])

        return max(arms, key=bound)

    def learn(self, arm: int, tokens: int, time_ms: float) -> None:
        """A round is over."""
        self.rounds[arm] += 1
        self.tokens[arm] += tokens
        self.time_ms[arm] += time_ms


class UcbStop(Rounds):
    """UCB-SpecStop (2606.20591): a bandit over the draft length; its reward is tokens per time, round trip included.

    The ratio of sums is what its renewal argument asks for. It learns over all answers of a run, not anew for each. The
    width of its confidence bound is a tenth of the best rate; the paper's constant was not seen.
    """

    name = "ucb"

    def __init__(self, arms: Arms) -> None:
        super().__init__()
        self._arms = arms
        self._arm = arms.pick()
        self._began_ms: float | None = None

    def more(self, depth: int) -> bool:
        return depth < self._arm

    def heard(self, news: News) -> None:
        if self._began_ms is not None:
            self._arms.learn(self._arm, news.new_tokens, news.now_ms - self._began_ms)
            self._arm = self._arms.pick()
        self._began_ms = news.now_ms
        super().heard(news)


class DraftAhead(Pace):
    """One block ahead: while a block is verified, draw the next on the guess that all of it is right, bonus token too.

    SpecEdge's proactive drafting (2505.17052) and PEARL's post-verify (2408.11850), as a chain. A block is sent once
    the verdict on the one before is in; if the guess was wrong, it is drawn anew.
    """

    name = "draft-ahead"
    patience_ms = PATIENCE_UNLIMITED_MS

    def __init__(self, draft_tokens: int = 5) -> None:
        self._tokens = draft_tokens

    def next(self, view: View) -> Action:
        room = view.can_draft and view.depth < view.budget
        if view.in_flight:  # the first token drawn ahead is a guess at the bonus token
            return Action.DRAFT if room and view.unsent < self._tokens + 1 else Action.WAIT
        return Action.DRAFT if room and view.unsent < self._tokens else Action.FLUSH
