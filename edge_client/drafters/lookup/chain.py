"""Lookups first, a model where they have nothing: a chain of drafters that is one drafter.

A lookup costs microseconds, and where a text repeats itself it is right more often than a model; where it does not, it
is wrong more often than it knows. So a chain keeps account of how often its lookups were right lately, and lets them go
alone only while they are. The model of a chain evaluates only what it must: tokens that a lookup carries wait until the
model is asked, and are then caught up with in one batch.

Where the lookup is not sure enough to go alone it drafts for the model (Spector and Re, staged speculative decoding,
2308.04623): the model evaluates the looked-up block at once, and as far as it agrees its next guesses are there then.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from edge_client.drafters.base import Candidates, Drafter, DrafterError
from edge_client.drafters.language_model import check_feed
from speculation.vocabulary.vocabulary import Vocabulary

# Of dialogues that repeated nothing, these let lookups draft 0.3 % of the tokens and cost 0.1 % of the model's
# acceptance; of ones that repeated their prompt with edits, 80 %, and raised it from 72 to 86 %.
MIN_PROBABILITY = 0.5
MIN_TRUST = 0.8
_FIRST_TRUST, _TRUST_STEP = 0.7, 1 / 16
MIN_STAGED_PROBABILITY = 0.35
MAX_STAGED_TOKENS = 8
MAX_LAG_TOKENS = 64


class _Told(NamedTuple):
    """What the lookups said at a position: their best guess, if any, and how far they were to be trusted by then."""

    guess: int
    log_prob: float
    trust: float


class ChainDrafter(Drafter):
    """Asks the lookups, the surest of which answers if it is sure enough and they were right lately; else the model.

    min_probability: of a lookup's best candidate, for it to be asked no further. min_trust: share of such guesses that
    were right lately. All of it follows from the sequence alone, guesses on it included. min_staged: of all tokens of a
    block together, for the model to evaluate it ahead of need. The model lags behind by at most MAX_LAG_TOKENS, so that
    `candidates` never evaluates more than a short batch; an error of its runtime may therefore come from `candidates`.
    All drafters belong to the chain from now on and are closed with it.
    """

    def __init__(
        self,
        lookups: Sequence[Drafter],
        model: Drafter | None = None,
        *,
        min_probability: float = MIN_PROBABILITY,
        min_trust: float = MIN_TRUST,
        min_staged: float = MIN_STAGED_PROBABILITY,
    ) -> None:
        """Raises ValueError without lookups."""
        if not lookups:
            raise ValueError("a chain begins with at least one lookup")
        self._lookups, self._model = lookups, model
        self._members = [*lookups, *([model] if model is not None else [])]
        self._min_log_prob, self._min_staged = math.log(min_probability), math.log(min_staged)
        self._min_trust = min_trust
        self._length = 0
        self._told: list[_Told] = []  # at each position of the sequence; only for a model's sake
        self._lag: list[int] = []  # the last tokens of the sequence, which the model has not seen
        self._ahead: deque[tuple[int, Candidates]] = deque()  # what the model has seen past it, and what follows each
        self._known: Candidates | None = None  # the model's candidates after the last token, from a block
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
            self._keep_up(self._model, tokens)
            self._listen(tokens)
        else:
            for lookup in self._lookups:
                lookup.feed(tokens)
        self._length += len(tokens)
        self._fed, self._candidates = True, None

    def _listen(self, tokens: Sequence[int]) -> None:
        """Feed the lookups token by token and keep account of what they say."""
        for token in tokens:
            trust = _FIRST_TRUST
            if self._told:
                guess, log_prob, trust = self._told[-1]
                if log_prob >= self._min_log_prob:
                    trust += ((guess == token) - trust) * _TRUST_STEP
            for lookup in self._lookups:
                lookup.feed([token])
            found = self._look_up()
            self._told.append(_Told(int(found.ids[0]) if len(found.ids) else -1, _best_log_prob(found), trust))

    def _keep_up(self, model: Drafter, tokens: Sequence[int]) -> None:
        """Walk along what the model has seen ahead; the rest waits, but not too much of it."""
        walked = 0
        while walked < len(tokens) and self._ahead and self._ahead[0][0] == tokens[walked]:
            self._known = self._ahead.popleft()[1]
            walked += 1
        if walked == len(tokens):
            return
        if self._ahead:
            self._ahead.clear()
            model.rollback(self._length + walked)
        self._known = None
        lag = [*self._lag, *tokens[walked:]]
        late = len(lag) - MAX_LAG_TOKENS
        if late > 0:
            try:
                model.feed(lag[:late])
            except Exception:
                model.rollback(min(model.length, self._length))
                raise
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
        found = self._look_up()
        if self._model is None:
            return found
        told = self._told[-1]
        if told.log_prob >= self._min_log_prob and told.trust >= self._min_trust:
            return found
        if self._known is None:
            self._known = self._evaluate(self._model, found)
        return self._known

    def _evaluate(self, model: Drafter, found: Candidates) -> Candidates:
        """The model catches up, and with a block that the lookups believe in."""
        block = self._block(found) if model.reads_blocks else []
        lag, self._lag = self._lag, []
        try:
            if not block:
                model.feed(lag)
                return model.candidates()
            first, *rest = model.feed_block([*lag, *block], len(block) + 1)
        except Exception:
            self._lag = lag
            raise
        self._ahead.extend(zip(block, rest, strict=True))
        return first

    def _block(self, found: Candidates) -> list[int]:
        """The lookups' own guess of what follows, as long as all of it is likely enough."""
        block: list[int] = []
        log_prob = _best_log_prob(found) + math.log(self._told[-1].trust)
        room = min(MAX_STAGED_TOKENS, self.info.context_tokens - self._length)
        while log_prob >= self._min_staged and len(block) < room:
            block.append(int(found.ids[0]))
            for lookup in self._lookups:
                lookup.feed(block[-1:])
            found = self._look_up()
            log_prob += _best_log_prob(found)
        for lookup in self._lookups:
            lookup.rollback(self._length)
        return block

    def _look_up(self) -> Candidates:
        return max((lookup.candidates() for lookup in self._lookups), key=_best_log_prob)

    def rollback(self, length: int) -> None:
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot keep {length} tokens of a sequence of {self._length}")
        if length == self._length:
            return
        self._check_open()
        for lookup in self._lookups:
            lookup.rollback(length)
        if self._model is not None:
            del self._told[length:]
            seen = min(self._model.length, self._length)
            if length < self._model.length:
                self._model.rollback(length)
            self._ahead.clear()
            self._known = None
            del self._lag[max(0, length - seen) :]
        self._length = length
        self._fed, self._candidates = False, None

    def adopt_vocabulary(self, fingerprint: str, size: int) -> Sequence[str]:
        notices = [notice for member in self._members for notice in member.adopt_vocabulary(fingerprint, size)]
        self._describe()
        return notices

    def learn(self, log: Sequence[int], prompt_tokens: int) -> None:
        failed: DrafterError | None = None
        for member in self._members:
            try:
                member.learn(log, prompt_tokens)
            except DrafterError as error:  # which is no reason for the others not to
                failed = failed or error
        if failed is not None:
            raise failed

    def vocabulary(self) -> Vocabulary | None:
        return self._model.vocabulary() if self._model is not None else None

    def speaker(self) -> Drafter | None:
        return self._model.speaker() if self._model is not None else None

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
