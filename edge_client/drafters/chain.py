"""Lookups first, a model where they have nothing: a chain of drafters that is one drafter.

A lookup costs microseconds and is often surer than a model, where it finds something. The model of a chain evaluates
only what it must: tokens that a lookup carries wait until the model is asked, and are then caught up with in one batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from edge_client.drafters.base import Candidates, Drafter, DrafterError
from edge_client.drafters.lookup import NOTHING, check_feed
from speculation.vocabulary import Vocabulary

MIN_PROBABILITY = 0.75
MAX_LAG_TOKENS = 64


class ChainDrafter(Drafter):
    """Asks the lookups, the surest of which answers if it is sure enough; else the model, if there is one.

    min_probability: of a lookup's best candidate, for it to be asked no further. The model lags behind by at most
    MAX_LAG_TOKENS, so that `candidates` never evaluates more than a short batch; an error of its runtime may therefore
    come from `candidates`. All drafters belong to the chain from now on and are closed with it.
    """

    def __init__(
        self, lookups: Sequence[Drafter], model: Drafter | None = None, *, min_probability: float = MIN_PROBABILITY
    ) -> None:
        """Raises ValueError without lookups."""
        if not lookups:
            raise ValueError("a chain begins with at least one lookup")
        self._lookups, self._model = lookups, model
        self._members = [*lookups, *([model] if model is not None else [])]
        self._min_log_prob = math.log(min_probability)
        self._length = 0
        self._lag: list[int] = []  # the last tokens of the sequence, which the model has not seen
        self._candidates: Candidates | None = None
        self._fed = False
        self._closed = False
        self._describe()

    def _describe(self) -> None:
        """The model's vocabulary is the chain's; the shortest context, too."""
        self.info = dataclasses.replace(
            self._members[-1].info,
            name="+".join(member.info.name for member in self._members),
            context_tokens=min(member.info.context_tokens for member in self._members),
        )

    @property
    def length(self) -> int:
        return self._length

    def feed(self, tokens: Sequence[int]) -> None:
        self._check_open()
        check_feed(self.info, self._length, tokens)
        if self._model is not None:
            self._keep_up([*self._lag, *tokens])
        for lookup in self._lookups:
            lookup.feed(tokens)
        self._length += len(tokens)
        self._fed, self._candidates = True, None

    def _keep_up(self, lag: list[int]) -> None:
        assert self._model is not None
        late = len(lag) - MAX_LAG_TOKENS
        if late > 0:
            self._model.feed(lag[:late])
            del lag[:late]
        self._lag = lag

    def candidates(self) -> Candidates:
        self._check_open()
        if not self._fed:
            raise DrafterError("the drafter has no candidates yet: feed at least the last token of the sequence first")
        if self._candidates is None:
            self._candidates = self._ask()
        return self._candidates

    def _ask(self) -> Candidates:
        found = max((lookup.candidates() for lookup in self._lookups), key=_best_log_prob, default=NOTHING)
        if self._model is None or _best_log_prob(found) >= self._min_log_prob:
            return found
        if self._lag:
            self._model.feed(self._lag)
            self._lag = []
        return self._model.candidates()

    def rollback(self, length: int) -> None:
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot keep {length} tokens of a sequence of {self._length}")
        if length == self._length:
            return
        self._check_open()
        for lookup in self._lookups:
            lookup.rollback(length)
        if self._model is not None:
            seen = self._model.length
            if length < seen:
                self._model.rollback(length)
            del self._lag[max(0, length - seen) :]
        self._length = length
        self._fed, self._candidates = False, None

    def adopt_vocabulary(self, fingerprint: str, size: int) -> Sequence[str]:
        notices = [notice for member in self._members for notice in member.adopt_vocabulary(fingerprint, size)]
        self._describe()
        return notices

    def learn(self, log: Sequence[int], prompt_tokens: int) -> None:
        for member in self._members:
            member.learn(log, prompt_tokens)

    def vocabulary(self) -> Vocabulary | None:
        return self._model.vocabulary() if self._model is not None else None

    def with_model(self, wrap: Callable[[Drafter], Drafter]) -> Drafter:
        if self._model is None:
            return self
        self.rollback(0)
        return ChainDrafter(self._lookups, self._model.with_model(wrap), min_probability=math.exp(self._min_log_prob))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for member in self._members:
                member.close()

    def _check_open(self) -> None:
        if self._closed:
            raise DrafterError("the drafter is closed")


def _best_log_prob(candidates: Candidates) -> float:
    return float(candidates.log_probs[0]) if len(candidates.ids) else -math.inf
