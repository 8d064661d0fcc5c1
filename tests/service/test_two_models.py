"""One device before a verifier of two models: each answer is drafted, and told of, as that of its own model."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from typing import Any

import pytest

from edge_client.client import EdgeClient, RequestOutput, SamplingParams
from edge_client.drafters.base import Drafter
from edge_client.drafters.lookup.chain import ChainDrafter
from edge_client.drafters.lookup.ngram import NgramDrafter
from edge_client.types import RideSettings, StreamChunk
from speculation.pace.base import Synchronous
from tests.mock_engine import answer
from tests.service.raw import PROMPT, SEED, until
from tests.service.two_models import LettersDrafter, TwoModels, reversed_ids

PROMPTS = {"mock": PROMPT, "other": tuple(reversed_ids(PROMPT))}
COUNT = 40


def ask(client: EdgeClient, model: str, count: int = COUNT) -> Generator[StreamChunk, None, None]:
    params = SamplingParams(temperature=0.0, max_tokens=count)
    return client.stream(PROMPTS[model], params, seed=SEED, ride=RideSettings(model=model))


def words(model: str, count: int = COUNT) -> list[int]:
    own = answer(PROMPT, SEED, count)
    return own if model == "mock" else reversed_ids(own)


def rest(chunks: Iterable[StreamChunk]) -> RequestOutput:
    *_, last = chunks
    output = last.output
    assert output is not None
    return output


def chained(seed: int) -> Drafter:
    return ChainDrafter([NgramDrafter()], LettersDrafter(seed))


@pytest.mark.parametrize("make", [LettersDrafter, chained])
def test_a_drafter_is_as_right_for_one_model_after_the_other(two_models: TwoModels, make: Any) -> None:
    two_models.allow()
    with EdgeClient(two_models.address, make(SEED), pace=lambda: Synchronous(4)) as client:
        rest(ask(client, "other", 400))  # until it is matched
        for model in ("mock", "other", "other", "mock", "mock", "other"):
            output = rest(ask(client, model))
            assert list(output.token_ids) == words(model)
            # All but the last token of each round, which the verifier adds, and what it wrote before the first draft.
            assert output.metrics.accepted_tokens >= COUNT // 2, (model, output.metrics)
            assert output.metrics.acceptance == 1.0


def test_a_session_goes_by_the_drafter_it_gets_and_not_by_the_one_that_was_there_when_it_opened(
    two_models: TwoModels,
) -> None:
    with EdgeClient(two_models.address, LettersDrafter(SEED), pace=lambda: Synchronous(4)) as client:
        two_models.other.allow(1000)
        rest(ask(client, "other", 400))
        until(
            lambda: client._drafter is not None and client._drafter.lease.end > 0,
            "the drafter is matched with the other model",
        )
        two_models.other.forbid()
        # Opened one after the other: one that drafts, one that will exchange the drafter, one that gets it after that.
        with closing(ask(client, "other", 3000)) as first, closing(ask(client, "mock", 200)) as second:
            third = ask(client, "other", 200)
            for stream, engine in ((first, two_models.other), (second, two_models.own), (third, two_models.other)):
                engine.allow(20)
                next(stream)
            first.close()
            for model, stream, engine in (("mock", second, two_models.own), ("other", third, two_models.other)):
                engine.allow(1000)
                output = rest(stream)
                assert list(output.token_ids) == words(model, 200)
                assert output.metrics.acceptance == 1.0, (model, output.metrics)


def test_chunks_tell_which_model_answers(two_models: TwoModels) -> None:
    two_models.allow()
    with EdgeClient(two_models.address) as client:
        fingerprints = {info.model: info.target_fingerprint for info in client.models()}
        assert len(set(fingerprints.values())) == 2
        for model in ("mock", "other", ""):
            ride = RideSettings(model=model)
            chunks = list(client.stream(PROMPT, SamplingParams(max_tokens=3), seed=SEED, ride=ride))
            told = [chunk.model_info for chunk in chunks if chunk.token_ids or chunk.output is not None]
            assert {info.target_fingerprint for info in told if info is not None} == {fingerprints[model or "mock"]}
            assert None not in told
