import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from speculation.noise import Noise
from speculation.sampling import Guess, SamplingError, SamplingParams, filtered, penalised

RNG = np.random.default_rng(11)


def shared_noise_sample(logits: np.ndarray, params: SamplingParams, count: int) -> np.ndarray:
    """`count` tokens drawn at successive positions from one distribution, as the verifier draws them."""
    log_p = filtered(logits, params)
    noise, tokens = Noise(5), np.arange(len(logits))
    return np.array([int((log_p + noise.gumbel(i, tokens)).argmax()) for i in range(count)])


def expected(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """The filtered distribution, written out plainly."""
    p = np.exp(logits / params.temperature - (logits / params.temperature).max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    keep = np.zeros(len(p), dtype=bool)
    total = 0.0
    for rank, token in enumerate(order):
        keep[token] = (params.top_k == 0 or rank < params.top_k) and total < params.top_p
        total += p[token] / (p[order[: params.top_k or None]].sum())
    keep &= p >= params.min_p * p.max()
    return np.asarray(np.where(keep, p, 0) / p[keep].sum())


@pytest.mark.parametrize("size", [5, 50, 500, 5000])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7, top_k=20),
        SamplingParams(temperature=1.0, top_p=0.9),
        SamplingParams(temperature=1.3, top_k=40, top_p=0.8, min_p=0.02),
    ],
    ids=str,
)
def test_shared_noise_draws_exactly_the_filtered_distribution(size: int, params: SamplingParams) -> None:
    logits = RNG.normal(0, 2, size)
    p = expected(logits, params)
    count = 4000
    counts = np.bincount(shared_noise_sample(logits, params, count), minlength=size)
    assert counts[p == 0].sum() == 0
    # Pool rare tokens so that every class expects at least five, as the chi-square test needs.
    order = np.argsort(p)
    order = order[p[order] > 0]
    classes, observed, wanted = [], 0, 0.0
    for token in order:
        observed, wanted = observed + counts[token], wanted + p[token] * count
        if wanted >= 5:
            classes.append((observed, wanted))
            observed, wanted = 0, 0.0
    if wanted:
        classes[-1] = (classes[-1][0] + observed, classes[-1][1] + wanted)
    if len(classes) > 1:
        seen, hoped = zip(*classes, strict=True)
        assert stats.chisquare(seen, hoped).pvalue > 1e-4


def test_joint_law_of_two_positions_by_enumeration() -> None:
    """Over many seeds, pairs of tokens at two positions follow p1 x p2 on a vocabulary of three."""
    p1, p2 = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.6, 0.3])
    tokens, count = np.arange(3), 6000
    pairs = dict.fromkeys(itertools.product(range(3), range(3)), 0)
    for seed in range(count):
        noise = Noise(seed)
        first = int((np.log(p1) + noise.gumbel(0, tokens)).argmax())
        second = int((np.log(p2) + noise.gumbel(1, tokens)).argmax())
        pairs[first, second] += 1
    hoped = [p1[a] * p2[b] * count for a, b in pairs]
    assert stats.chisquare(list(pairs.values()), hoped).pvalue > 1e-4


def test_match_probability_is_at_least_the_bound() -> None:
    """P(match) >= (1 - TV) / (1 + TV) (Daliri, Musco, Suresh, 2408.07978)."""
    base = RNG.normal(0, 2, 200)
    other = base + RNG.normal(0, 0.7, 200)
    params = SamplingParams()
    p, q = expected(base, params), expected(other, params)
    tv = 0.5 * np.abs(p - q).sum()
    match = (shared_noise_sample(base, params, 4000) == shared_noise_sample(other, params, 4000)).mean()
    assert match > (1 - tv) / (1 + tv) - 0.03
    assert match <= 1 - tv + 0.03


def test_a_guess_with_the_targets_own_distribution_is_always_right() -> None:
    params = SamplingParams(temperature=0.8, top_p=0.95)
    guess, noise, tokens = Guess(params, seed=21), Noise(21), np.arange(64)
    for position in range(200):
        logits = RNG.normal(0, 3, 64)
        target = int((filtered(logits, params) + noise.gumbel(position, tokens)).argmax())
        order = np.argsort(-logits)
        log_q = logits - np.log(np.exp(logits).sum())
        token, confidence = guess(position, order, log_q[order])
        assert token == target
        assert 0 < confidence <= 1


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.3])
@pytest.mark.parametrize(
    "filters", [{"top_p": 0.95}, {"top_p": 0.5}, {"top_p": 0.8, "min_p": 0.01}, {"top_p": 0.9, "top_k": 20}]
)
def test_few_candidates_are_cut_by_the_probability_of_the_whole_vocabulary(
    filters: dict[str, Any], temperature: float
) -> None:
    """q is flat, so that much of it lies beyond the candidates; wherever the target's token is one, it is guessed."""
    params = SamplingParams(temperature=temperature, logit_bias={5: 1.0}, **filters)
    guess, noise, tokens, rng = Guess(params, seed=21), Noise(21), np.arange(2000), np.random.default_rng(4)
    inside = 0
    for position in range(300):
        logits = rng.normal(0, 1.5, len(tokens))
        biased = logits.copy()
        biased[5] += 1.0
        target = int((filtered(biased, params) + noise.gumbel(position, tokens)).argmax())
        log_q = logits - np.log(np.exp(logits).sum())
        order = np.argsort(-logits)[:64]

        def power_sum(power: float, log_q: npt.NDArray[np.float64] = log_q) -> float:
            return float(np.exp((log_q - log_q.max()) * power).sum())

        if target in order:
            inside += 1
            assert guess(position, order, log_q[order], power_sum)[0] == target
            if temperature == 1.0:
                assert guess(position, order, log_q[order])[0] == target
    assert inside > 20


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("top_k", [65, 100, 1000])
def test_a_top_k_past_the_candidates_is_nearly_always_followed(top_k: int, temperature: float) -> None:
    """How much of q lies between the last candidate and the last of the top-k is not known, only a bound of it. With
    the candidates taken for all there is, one guess in ten is wrong."""
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=0.9)
    guess, noise, tokens, rng = Guess(params, seed=21), Noise(21), np.arange(2000), np.random.default_rng(4)
    inside = right = 0
    for position in range(300):
        logits = rng.normal(0, 2.5, len(tokens))
        target = int((filtered(logits, params) + noise.gumbel(position, tokens)).argmax())
        log_q = logits - np.log(np.exp(logits).sum())
        order = np.argsort(-logits)[:64]

        def power_sum(power: float, log_q: npt.NDArray[np.float64] = log_q) -> float:
            return float(np.exp((log_q - log_q.max()) * power).sum())

        if target in order:
            inside += 1
            right += guess(position, order, log_q[order], power_sum)[0] == target
    assert inside > 150
    assert right >= 0.975 * inside


def test_candidates_alone_leave_room_for_what_they_do_not_tell() -> None:
    """Two of q's tokens are known, .5 and .1: the second is within a top-p of .6, and not within .4."""
    ids, log_q = np.array([0, 1]), np.log(np.array([0.5, 0.1]))
    for temperature in (0.9, 1.0, 1.1):
        drawn = {
            top_p: {Guess(SamplingParams(temperature=temperature, top_p=top_p), 3)(i, ids, log_q)[0] for i in range(99)}
            for top_p in (0.4, 0.6)
        }
        assert drawn == {0.4: {0}, 0.6: {0, 1}}


def test_a_greedy_guess_takes_the_likeliest_and_is_as_sure_as_q() -> None:
    log_q = np.log(np.array([0.7, 0.2, 0.1]))
    token, confidence = Guess(SamplingParams(temperature=0), seed=1)(3, np.array([9, 4, 2]), log_q)
    assert token == 9
    assert confidence == pytest.approx(0.7)


def test_a_guess_follows_logit_bias() -> None:
    params = SamplingParams(temperature=0, logit_bias={4: 5.0})
    assert Guess(params, seed=1)(0, np.array([9, 4]), np.log(np.array([0.7, 0.3])))[0] == 4


def test_one_stop_text_is_one_and_not_its_letters() -> None:
    assert SamplingParams(stop="END").stop == ("END",)
    assert SamplingParams(stop=["a", "b"]) == SamplingParams(stop=("a", "b"))
    with pytest.raises(SamplingError, match="none of them empty"):
        SamplingParams(stop="")


def test_penalties() -> None:
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25, repetition_penalty=2.0, logit_bias={3: 1.5})
    logits = np.array([1.0, -1.0, 2.0, 0.0, 4.0])
    out = penalised(logits, params, prompt=[0], answer=[1, 2, 2])
    assert out.tolist() == [0.5, -2.0 - 0.75, 1.0 - 1.0, 1.5, 4.0]
    assert logits.tolist() == [1.0, -1.0, 2.0, 0.0, 4.0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", 1.5),
        ("presence_penalty", 2.5),
        ("repetition_penalty", 0.0),
        ("max_tokens", 0),
        ("stop", ("",)),
        ("logit_bias", {3: float("nan")}),
        ("logprobs", 21),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(SamplingError, match=field):
        SamplingParams(**{field: value})  # type: ignore[arg-type]


def test_an_only_candidate_is_as_sure_as_its_drafter() -> None:
    ids, log_q = np.array([9]), np.log(np.array([0.6]))
    for temperature in (0.0, 0.8):
        token, confidence = Guess(SamplingParams(temperature=temperature), seed=1)(0, ids, log_q)
        assert token == 9
        assert confidence == pytest.approx(0.6)


@pytest.mark.parametrize("temperature", [1e-3, 1e-5, 1e-6, 1e-20, 1e-44, 2.0**-150, 1e-310, 5e-324, 0.0])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_the_colder_the_likelier(temperature: float, top_p: float) -> None:
    """Below 1e-5 there is no noise, on either side: also where the contract's 32 bits would round to 0."""
    params = SamplingParams(temperature=temperature, top_p=top_p)
    assert params.greedy == SamplingParams(temperature=float(np.float32(temperature))).greedy == (temperature < 9.9e-6)
    guess = Guess(params, seed=3)
    for position in range(40):
        token, confidence = guess(position, np.array([9, 4, 2]), np.log(np.array([0.6, 0.3, 0.1])))
        assert token == 9
        assert 0.0 < confidence <= 1.0
