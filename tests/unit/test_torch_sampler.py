from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_verifier.engines.base import Sampler
from cloud_verifier.engines.sampling import sampler as module
from cloud_verifier.engines.sampling.penalties import TokenCounts
from cloud_verifier.engines.sampling.sampler import (
    Row,
    adjust,
    choose,
    choose_simply,
    filtered,
    logprobs,
    rows_of,
)
from speculation import sampling
from speculation.noise import Noise
from speculation.sampling import SamplingParams

SIZES = (5, 61, 700, 4099, 20_000)
EXTREME_TEMPERATURES = (1e-44, 1e-6, 1e-5, 1e-3, 100.0)  # the first is nearly the least that the contract can carry


def penalised(logits: np.ndarray, row: Row, history: list[int]) -> np.ndarray:
    """The definition, in numpy. history: of the row's sequence, and what follows the row."""
    seen, split = history[: row.position], row.sampler.prompt_length
    return sampling.penalised(logits, row.sampler.params, seen[:split], seen[split:])


def expected_choice(logits: np.ndarray, row: Row, history: list[int]) -> int:
    """The definition, in numpy."""
    params = row.sampler.params
    adjusted = penalised(logits, row, history)
    if params.greedy:
        return int(adjusted.argmax())
    scores = sampling.filtered(adjusted, params)
    return int((scores + Noise(row.sampler.seed).gumbel(row.position, np.arange(len(logits)))).argmax())


def at_the_edge(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Whose predecessors hold top_p but for rounding: float64 here and fixed point there may decide either way."""
    scores = sampling.filtered(logits, dataclasses.replace(params, top_p=1.0, min_p=0.0))
    order = np.argsort(-scores, kind="stable")
    probs = np.exp(scores[order])
    probs /= probs.sum()
    edge = np.zeros(len(logits), bool)
    edge[order[np.abs(np.cumsum(probs) - probs - params.top_p) < 1e-12]] = params.top_p < 1.0
    return edge


@st.composite
def parameters(draw: st.DrawFn) -> SamplingParams:
    def maybe(neutral: float, values: st.SearchStrategy[float]) -> float:
        return draw(st.one_of(st.just(neutral), values))

    return SamplingParams(
        temperature=maybe(0.0, st.one_of(st.floats(0.1, 3.0), st.sampled_from(EXTREME_TEMPERATURES))),
        top_k=int(maybe(0, st.one_of(st.integers(1, 80), st.integers(690, 5000)))),
        top_p=maybe(1.0, st.one_of(st.floats(0.05, 0.999), st.sampled_from([1e-9, 0.999999]))),
        min_p=maybe(0.0, st.one_of(st.floats(0.001, 1.0), st.just(1e-8))),
        presence_penalty=maybe(0.0, st.floats(-2, 2)),
        frequency_penalty=maybe(0.0, st.floats(-2, 2)),
        repetition_penalty=maybe(1.0, st.one_of(st.floats(0.5, 2), st.just(100.0))),
        logit_bias=draw(st.dictionaries(st.integers(0, 4), st.sampled_from([-100.0, -3.5, 20.0, 100.0]), max_size=3)),
    )


Batch = tuple[torch.Tensor, list[Row], list[list[int]]]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Logits, rows, and the tokens of each row's sequence. Blocks of several rows, as guesses make them."""
    size = draw(st.sampled_from(SIZES))
    spread = draw(st.sampled_from([0.01, 0.3, 3.0, 12.0, 60.0]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    rows: list[Row] = []
    histories = []
    for _ in range(draw(st.integers(1, 4))):
        ids = st.integers(0, draw(st.sampled_from([2, size - 1])))  # of few tokens many come again
        history = draw(st.lists(ids, max_size=12))
        block = draw(st.integers(1, 4))
        positions = range(max(0, len(history) - block + 1), len(history) + 1)
        sampler = Sampler(draw(parameters()), draw(st.integers(0, 2**64 - 1)), draw(st.integers(0, 12)))
        rows += rows_of(sampler, positions, history)
        histories += [history] * len(positions)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    logits = torch.randn(len(rows), size, generator=generator) * spread
    kind = draw(st.sampled_from(["plain", "ties", "equal", "masked"]))
    if kind == "ties":
        logits = logits.round()
    elif kind == "equal":
        logits[:] = logits[:, :1].clone()
    elif kind == "masked":
        logits[:, draw(st.integers(0, size - 1))] = -torch.inf
    return logits.to(dtype), rows, histories


@settings(max_examples=200)
@given(batches(), st.sampled_from([1, 1 << 14, module.CPU_LOGITS]))
def test_choices_equal_the_definition(batch: Batch, logits_at_a_time: int) -> None:
    logits, rows, histories = batch
    before = logits.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CPU_LOGITS", logits_at_a_time)
        chosen = choose(logits, rows)
    assert torch.equal(logits, before)
    assert chosen == [expected_choice(logits[i].double().numpy(), row, histories[i]) for i, row in enumerate(rows)]


@settings(max_examples=50)
@given(batches())
def test_a_choice_does_not_depend_on_company(batch: Batch) -> None:
    logits, rows, _ = batch
    assert choose(logits, rows) == [choose(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]


@settings(max_examples=100)
@given(batches())
def test_filters_and_penalties_equal_the_definition(batch: Batch) -> None:
    logits, rows, histories = batch
    sampled = [i for i, row in enumerate(rows) if not row.sampler.params.greedy]
    adjusted = logits.double().clone()
    adjust(adjusted, rows)
    for i, row in enumerate(rows):
        expected = penalised(logits[i].double().numpy(), row, histories[i])
        np.testing.assert_array_equal(adjusted[i].numpy(), expected)
    if sampled:
        found = filtered(adjusted[sampled], [rows[i].sampler.params for i in sampled])
        for number, i in enumerate(sampled):
            params = rows[i].sampler.params
            expected = sampling.filtered(adjusted[i].numpy(), params)
            clear = ~at_the_edge(adjusted[i].numpy(), params)
            np.testing.assert_array_equal(found[number].isneginf().numpy()[clear], np.isneginf(expected)[clear])
            both = np.isfinite(found[number].numpy()) & np.isfinite(expected)
            np.testing.assert_allclose(found[number].numpy()[both], expected[both], atol=1e-12)


def test_equal_probabilities_are_kept_up_to_the_edge() -> None:
    """350 of 700 equal ones hold half of the mass, but for rounding: the next may be in or out."""
    params = SamplingParams(temperature=1.0, top_p=0.5)
    assert np.flatnonzero(at_the_edge(np.zeros(700), params)).tolist() == [350]
    kept = filtered(torch.zeros(1, 700, dtype=torch.float64), [params])[0].isfinite()
    assert kept[:350].all()
    assert not kept[351:].any()


@given(st.lists(st.integers(0, 5), max_size=20), st.integers(0, 20), st.lists(st.integers(0, 20), max_size=8))
def test_counts_that_follow_a_sequence_are_those_of_the_sequence(
    tokens: list[int], prompt_length: int, lengths: list[int]
) -> None:
    counts = TokenCounts(6, prompt_length)
    for length in (*lengths, len(tokens)):
        if length < counts.length:
            counts.shrink(tokens[length : counts.length])
        counts.extend(tokens[counts.length : length])
        answer = tokens[prompt_length : counts.length]
        past = counts.past(tokens[counts.length :], ())
        assert past.ids.tolist() == sorted(set(tokens))
        assert past.answered.tolist() == [tokens[prompt_length:].count(i) for i in past.ids]
        assert counts._answer.tolist() == [answer.count(i) for i in range(6)], "what is only tried leaves no trace"


def test_the_rows_of_a_block_count_their_sequence_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty-four guesses in a sequence of 50,000 tokens: what is counted is the sequence, not it times the rows."""
    counted = 0
    extend = TokenCounts.extend

    def counting(self: TokenCounts, tokens: list[int]) -> None:
        nonlocal counted
        counted += len(tokens)
        extend(self, tokens)

    monkeypatch.setattr(TokenCounts, "extend", counting)
    history = [i % 50 for i in range(50_000)]
    sampler = Sampler(SamplingParams(temperature=0.0, repetition_penalty=1.5), 0, 10)
    logits = torch.randn(65, 64)
    assert len(choose(logits, rows_of(sampler, range(50_000 - 64, 50_001), history))) == 65
    assert counted <= 50_000


def test_many_rows_take_no_more_memory_than_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Filters make several float64 tensors of what they are given: never of more than CPU_LOGITS logits at a time."""
    most = 0

    def watch(name: str) -> None:
        whole = getattr(module, name)

        def watched(logits: torch.Tensor, *rest: Any) -> Any:
            nonlocal most
            most = max(most, logits.numel())
            return whole(logits, *rest)

        monkeypatch.setattr(module, name, watched)

    for name in ("_choose_plain", "_choose_adjusted", "filtered"):
        watch(name)
    monkeypatch.setattr(module, "CPU_LOGITS", 3 * 700)
    logits = torch.randn(20, 700)
    for params in (SamplingParams(), SamplingParams(top_p=0.9), SamplingParams(temperature=0.0, logit_bias={1: 1.0})):
        choose(logits, rows_of(Sampler(params, 1, 0), range(20)))
        assert 0 < most <= 3 * 700, params
    whole = logprobs(logits, range(20), 3)
    monkeypatch.setattr(module, "CPU_LOGITS", 1 << 30)
    assert logprobs(logits, range(20), 3) == whole


def kept(logits: list[float], params: SamplingParams) -> list[int]:
    return filtered(torch.tensor([logits], dtype=torch.float64), [params])[0].isfinite().nonzero()[:, 0].tolist()


def test_ties_at_the_edges() -> None:
    logits = [1.0, 3.0, 2.0, 3.0, 2.0, 2.0]
    assert kept(logits, SamplingParams(top_k=3)) == [1, 2, 3, 4, 5]  # all that tie with the third
    assert kept([0.0] * 4, SamplingParams(top_p=0.5)) == [0, 1]  # by id
    assert kept([0.0] * 4, SamplingParams(top_p=0.51)) == [0, 1, 2]
    assert kept(logits, SamplingParams(min_p=1.0)) == [1, 3]
    assert kept(logits, SamplingParams(top_p=1e-9)) == [1]
    assert kept(logits, SamplingParams(top_k=600)) == list(range(6))
    [greedy] = rows_of(Sampler(SamplingParams(temperature=0.0), 0, 0), [0])
    assert choose(torch.tensor([logits]), [greedy]) == [1]


@pytest.mark.parametrize("ties", [200, 256, 257, 300, 4096])
def test_top_p_among_equals_that_its_first_look_cuts_through(ties: int) -> None:
    """topk may return any of the equals; the nucleus must be the lowest ids among them all the same."""
    logits = torch.zeros(4096, dtype=torch.float64)
    logits[torch.randperm(4096, generator=torch.Generator().manual_seed(ties))[:ties]] = 9.0
    for top_p in (0.25, 0.5, 0.75):
        params = SamplingParams(top_p=top_p)
        expected = np.isfinite(sampling.filtered(logits.numpy(), params)).nonzero()[0]
        got = kept(logits.tolist(), params)
        # The definition adds up floats, the twin exact fixed-point numbers: they may part by one token at a true tie.
        assert len(set(got) ^ set(expected.tolist())) <= 1
        assert got[: len(got) - 1] == expected[: len(got) - 1].tolist()


def test_rows_of_a_narrow_and_a_wide_nucleus_together() -> None:
    narrow, wide = torch.randn(2, 4096, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    narrow *= 8
    params = [SamplingParams(top_p=0.9)] * 2
    both = filtered(torch.stack([narrow, wide]), params)
    counts = both.isfinite().sum(-1).tolist()
    assert counts[0] < module.NUCLEUS_FIRST < counts[1]
    for found, logits in zip(both, (narrow, wide), strict=True):
        assert torch.equal(found, filtered(logits[None], params[:1])[0])


@pytest.mark.parametrize("spread", [0.5, 20.0])
def test_noise_only_where_it_matters_chooses_as_noise_everywhere(spread: float) -> None:
    logits = torch.randn(300, 1000, generator=torch.Generator().manual_seed(5)) * spread
    rows = rows_of(Sampler(SamplingParams(temperature=0.7), 11, 0), range(300))
    everywhere = choose_simply(logits, rows, torch.full((300, 1), 0.7, dtype=torch.float64))
    assert choose(logits, rows) == everywhere.tolist()
    assert len(set(everywhere.tolist())) > 50


def test_logprobs_are_the_targets_own_and_ties_go_by_id() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0, 1.0, 1.0]] * 2, dtype=torch.bfloat16)
    first, second = logprobs(logits, [0, 3], 4)
    table = torch.log_softmax(logits[0].double(), -1).tolist()
    assert first.top_ids == second.top_ids == (1, 3, 2, 4)
    assert first.top_logprobs == pytest.approx([table[i] for i in (1, 3, 2, 4)])
    assert (first.logprob, second.logprob) == pytest.approx((table[0], table[3]))
    assert logprobs(logits[:1], [2], 0)[0].top_ids == ()
    assert len(logprobs(logits[:1], [2], 20)[0].top_ids) == 6
