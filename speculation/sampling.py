"""How a token is chosen: parameters, filters, and the choice under shared noise.

Order: logit bias and penalties, temperature, top-k, top-p, min-p, then noise. Filters act before the noise, so what is
sampled is exactly the filtered distribution. The verifier's torch twin of the filters is
`cloud_verifier.engines.sampling.sampler`; the functions here are the definition it is tested against, and what a
drafter uses on its few candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from speculation.noise import Noise

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_LOGIT_BIAS = 1024
FloatArray = npt.NDArray[np.float64]
PowerSum = Callable[[float], float]  # over a vocabulary, of (probability / the greatest one) to this power


class SamplingError(ValueError):
    """A sampling parameter outside its range. The message names the parameter, the value and the range."""


# Colder is greedy, as in vLLM: scaled logits so great leave no bits for the noise that decides between equal ones.
_COLDEST = float(np.float32(1e-5))  # as the contract carries it


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when an answer ends; the fields are those of `SamplingParams` in the contract.

    stop: one text or several; one becomes a tuple of one. Raises SamplingError on construction when a field is out of
    range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        # A text is a sequence of texts, too: of its letters.
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        for name, value, low, high in (
            ("temperature", self.temperature, 0.0, 100.0),
            ("top_k", self.top_k, 0, 2**31),
            ("min_p", self.min_p, 0.0, 1.0),
            ("presence_penalty", self.presence_penalty, -2.0, 2.0),
            ("frequency_penalty", self.frequency_penalty, -2.0, 2.0),
            ("logprobs", self.logprobs or 0, 0, MAX_LOGPROBS),
        ):
            if not (math.isfinite(value) and low <= value <= high):
                raise SamplingError(f"{name} is {value}; it must lie between {low} and {high}")
        for name, value, high in (("top_p", self.top_p, 1.0), ("repetition_penalty", self.repetition_penalty, 100.0)):
            if not (math.isfinite(value) and 0.0 < value <= high):
                raise SamplingError(f"{name} is {value}; it must be above 0 and at most {high}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise SamplingError(f"max_tokens is {self.max_tokens}; it must be at least 1")
        if len(self.stop) > MAX_STOP_STRINGS or not all(self.stop):
            raise SamplingError(f"stop takes at most {MAX_STOP_STRINGS} texts, none of them empty")
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise SamplingError(f"logit_bias has {len(self.logit_bias)} entries; it takes at most {MAX_LOGIT_BIAS}")
        for token, bias in self.logit_bias.items():
            if not (math.isfinite(bias) and -100.0 <= bias <= 100.0):
                raise SamplingError(f"logit_bias of token {token} is {bias}; it must lie between -100 and 100")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, without noise."""
        return self.temperature < _COLDEST

    @property
    def noise_temperature(self) -> float:
        """The temperature, 0 where the choice is greedy."""
        return 0.0 if self.greedy else self.temperature

    @property
    def needs_history(self) -> bool:
        """Whether the choice at a position depends on the tokens before it, beyond the model's own view."""
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0


def penalised(logits: FloatArray, params: SamplingParams, prompt: Sequence[int], answer: Sequence[int]) -> FloatArray:
    """Logits (shape [V]) after logit bias and penalties, as a new array.

    presence and frequency look at the answer, repetition at prompt and answer (Keskar et al., 1909.05858), as in vLLM.
    """
    out = np.array(logits, dtype=np.float64)
    if params.repetition_penalty != 1.0:
        seen = np.unique(np.array([*prompt, *answer], dtype=np.int64))
        out[seen] = np.where(
            out[seen] > 0, out[seen] / params.repetition_penalty, out[seen] * params.repetition_penalty
        )
    if answer and (params.presence_penalty or params.frequency_penalty):
        tokens, counts = np.unique(np.array(answer, dtype=np.int64), return_counts=True)
        out[tokens] -= params.presence_penalty + params.frequency_penalty * counts
    for token, bias in params.logit_bias.items():
        out[token] += bias
    return out


def filtered(logits: FloatArray, params: SamplingParams, beyond: float = 0.0) -> FloatArray:
    """Log-probabilities (shape [V]) after temperature, top-k, top-p and min-p; dropped tokens get -inf.

    beyond: where the logits are only those of a vocabulary's likeliest tokens, the sum of exp(logits / temperature)
    over all others, in units of the greatest one given. Needs a temperature above zero. Ties at a filter's edge are all
    kept for top-k and broken by id for top-p. The kept tokens are not renormalised: an argmax over noise does not mind.
    """
    scaled = logits / params.temperature
    log_probs = scaled - scaled.max()
    log_probs -= np.log(np.exp(log_probs).sum() + beyond)
    if 0 < params.top_k < len(log_probs):
        edge = np.partition(log_probs, -params.top_k)[-params.top_k]
        log_probs = np.where(log_probs < edge, -np.inf, log_probs)
    if params.top_p < 1.0:
        order = np.argsort(-log_probs, kind="stable")
        probs = np.exp(log_probs[order])
        if not beyond:
            probs /= probs.sum()
        before = np.cumsum(probs) - probs
        log_probs = log_probs.copy()
        log_probs[order[before >= params.top_p]] = -np.inf
    if params.min_p > 0.0:
        log_probs = np.where(log_probs < log_probs.max() + math.log(params.min_p), -np.inf, log_probs)
    return np.asarray(log_probs)


class Guess:
    """A drafter's choice among its candidates, by the verifier's own rule and noise."""

    def __init__(self, params: SamplingParams, seed: int) -> None:
        self._params = params
        self._noise = Noise(seed)
        self._plain = params.top_k == 0 and params.top_p == 1.0 and params.min_p == 0.0
        self._bias = dict(params.logit_bias)

    def __call__(
        self, position: int, ids: npt.NDArray[np.int64], log_probs: FloatArray, power_sum: PowerSum | None = None
    ) -> tuple[int, float]:
        """The token that q predicts for this position, and a confidence in [0, 1].

        ids, log_probs: shape [n], n >= 1, likeliest first. power_sum: of q; without it, what
        lies beyond the n tokens is estimated where a top-p at another temperature than 1 needs it.

        The confidence is the share of the winner in the softmax of the scores that competed, noise included: under
        shared noise that is what tells a clear win from a close one. Times the probability that q gives to all n: a
        lookup's only candidate has won nothing yet. Penalties are left to the verifier; they only cost acceptance.
        """
        scores = self._scores(position, ids, log_probs, power_sum)
        best = scores.argmax()
        given = min(1.0, float(np.exp(log_probs).sum()))
        confidence = given / float(np.exp(scores - scores[best]).sum())
        return int(ids[best]), confidence

    def ranked(
        self,
        width: int,
        position: int,
        ids: npt.NDArray[np.int64],
        log_probs: FloatArray,
        power_sum: PowerSum | None = None,
    ) -> tuple[list[int], list[float]]:
        """The `width` likeliest tokens for this position and their confidences, the likeliest first; the first is the
        one that a call gives.

        The target's token is argmax(log p + G), so the best candidates are the greatest log q + G, not the greatest q.
        Fewer than `width` if the filters leave fewer.
        """
        if width == 1:
            token, confidence = self(position, ids, log_probs, power_sum)
            return [token], [confidence]
        scores = self._scores(position, ids, log_probs, power_sum)
        order = (-scores).argsort(kind="stable")[:width]
        shares = np.exp(scores - scores[order[0]])
        given = min(1.0, float(np.exp(log_probs).sum())) / float(shares.sum())
        kept = [int(place) for place in order if shares[place] > 0.0]
        return [int(ids[place]) for place in kept], [given * float(shares[place]) for place in kept]

    def _scores(
        self, position: int, ids: npt.NDArray[np.int64], log_probs: FloatArray, power_sum: PowerSum | None
    ) -> FloatArray:
        """What competes: [n]."""
        scores = log_probs
        if self._bias:
            scores = scores + np.array([self._bias.get(int(i), 0.0) for i in ids])
        if self._params.greedy:
            return scores
        noise = self._noise.gumbel(position, ids)
        if self._plain:
            return scores / self._params.temperature + noise
        return self._filtered(scores, log_probs, noise, power_sum) + noise

    def _filtered(
        self, scores: FloatArray, log_probs: FloatArray, noise: FloatArray, power_sum: PowerSum | None
    ) -> FloatArray:
        """`filtered`, where top-p cuts by the probability of the whole vocabulary, not of the candidates alone.

        A top-k that reaches past the candidates leaves of what lies beyond them at most so many tokens, none likelier
        than the last candidate.
        """
        params, count = self._params, len(scores)
        if params.top_p == 1.0 or 0 < params.top_k <= count:  # which cuts within the likeliest few
            return filtered(scores, params)
        power = 1.0 / params.temperature
        relative = np.exp(log_probs - log_probs[0])  # of q, to its greatest probability
        most = (params.top_k - count) * float(relative[-1]) ** power if params.top_k else math.inf
        rest = max(0.0, 1.0 - float(np.exp(log_probs).sum())) / math.exp(log_probs[0])
        if power == 1.0:
            beyond = rest
        elif power_sum is None:
            # As if everything beyond were as likely as the last candidate: too much below temperature 1, too little
            # above.
            beyond = rest * float(relative[-1]) ** (power - 1.0)
        else:
            beyond = 0.0
        scaled = scores * power
        shares = np.exp(scaled - scaled.max())
        if power_sum is not None and power != 1.0:
            # A pass over the vocabulary, only if it decides: the winner must be cut if so much is likelier.
            best = int((scaled + noise).argmax())
            if float(shares[scaled > scaled[best]].sum()) >= params.top_p * float(shares.sum()):
                beyond = max(0.0, power_sum(power) - float((relative**power).sum()))
        beyond = min(beyond, most)
        # A bias may have moved the greatest.
        return filtered(scores, params, beyond * math.exp(min(700.0, log_probs[0] * power - float(scaled.max()))))
