"""The drafter's model writes an answer by itself: the same parameters, seed and rule of choice, its own words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edge_client.drafters.base import Candidates
from edge_client.riding.drafter_lease import DrafterLease
from outrider_models.model_text import ModelText
from speculation.answer_text import AnswerText
from speculation.sampling import Guess, SamplingParams


@dataclass
class LocalDecoding:
    """One answer, or the rest of one, written on the device.

    lease: of the model alone. prompt, answer: what there is, in the model's tokens. shown: the text of the answer that
    people have seen. of_log: the tokens are the target's, so that ids among the parameters mean something.
    """

    lease: DrafterLease
    text: ModelText
    params: SamplingParams
    seed: int
    prompt: Sequence[int]
    answer: Sequence[int]
    shown: str
    of_log: bool
    tokens: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.of_log:
            self.params = replace(self.params, logit_bias={}, stop_ids=())
        self._ends = frozenset() if self.params.ignore_eos else self.text.ends
        self._ends |= frozenset(self.params.stop_ids) | self.text.vocabulary.named(self.params.stop)
        self._answer_text = AnswerText(self.text.stream(self.prompt), self.params.stop)
        for token in self.answer:
            self._answer_text.push(token)
        told = "".join(self._answer_text.pieces)
        # The verifier may know of text that it held back: an unfinished character, or the beginning of a stop string.
        self._held = told[len(self.shown) :] if told.startswith(self.shown) else ""

    @property
    def written(self) -> str:
        """The text so far, of this device alone."""
        return "".join(self.texts)

    def run(self, emit: Callable[[int, str], None], cancelled: Callable[[], bool]) -> str:
        """Write to the end; `emit` hears each token and what it adds to the text. Returns the finish reason.

        Raises what the model raises. `rest` may hold text that belongs to no token.
        """
        guess = Guess(self.params, self.seed)
        held = [*self.prompt, *self.answer]
        self.lease.keep_common_prefix(held)
        most = self.params.max_tokens
        room = self.lease.drafter.info.context_tokens
        limit = max(0, most - len(self.answer)) if most is not None else max(1, room - len(held))
        for _ in range(limit):
            if not self._read(held, cancelled):
                return "abort"
            candidates = self._penalised(self.lease.candidates())
            if not len(candidates.ids):
                return "stop"
            token, _ = guess(len(held), *candidates)
            held.append(token)
            stopped = self._answer_text.push(token)
            piece, self._held = self._held + self._answer_text.pieces[-1], ""
            self.tokens.append(token)
            self.texts.append(piece)
            emit(token, piece)
            if stopped or token in self._ends:
                return "stop"
        return "length"

    def rest(self) -> str:
        """Text held back that belongs to the answer after all, once it has ended."""
        return self._answer_text.rest()

    def _read(self, held: Sequence[int], cancelled: Callable[[], bool]) -> bool:
        """Bring the model up to date in pieces; False if nobody waits for it any more."""
        lease = self.lease
        lease.reach(len(held))
        while lease.end < len(held):
            if cancelled():
                return False
            lease.read(held[lease.end : lease.end + lease.piece.tokens])
        return True

    def _penalised(self, candidates: Candidates) -> Candidates:
        """Penalties, on the candidates' log-probabilities instead of logits: nobody else applies them here."""
        params = self.params
        if not params.needs_history or not len(candidates.ids):
            return candidates
        answer = [*self.answer, *self.tokens]
        seen = np.isin(candidates.ids, [*self.prompt, *answer])
        scores = np.where(seen, candidates.log_probs * params.repetition_penalty, candidates.log_probs)
        times = Counter(answer)
        counts = np.array([times[int(token)] for token in candidates.ids])
        scores = scores - params.presence_penalty * (counts > 0) - params.frequency_penalty * counts
        beyond = max(0.0, 1.0 - float(np.exp(candidates.log_probs).sum()))  # which has its share, too
        scores = scores - math.log(float(np.exp(scores).sum()) + beyond)
        order = np.argsort(-scores, kind="stable")
        return Candidates(candidates.ids[order], scores[order])
