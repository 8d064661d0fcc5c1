"""A verifier that fails on one answer: it goes on by itself from the words that have come, or says what to do."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from edge_client.client import AsyncEdgeClient, EdgeClient, SamplingParams
from edge_client.errors import SessionError
from edge_client.link.session_link import MOST_FAILURES
from tests.harness import InProcessVerifier, MockDrafter
from tests.mock_engine import MockEngine, answer
from tests.service.engines import FailingEngine
from tests.service.raw import DEADLINE_S, PROMPT, SEED, until

COUNT = 40
BREAKS = len(PROMPT) + 12  # tokens of the log
WORDS = tuple(answer(PROMPT, SEED, COUNT))
PARAMS = SamplingParams(max_tokens=COUNT)


@pytest.mark.parametrize("at", [1, BREAKS, len(PROMPT) + COUNT - 1])
@pytest.mark.parametrize("drafts", [False, True])
def test_an_answer_goes_on_after_an_engine_failed_on_it(at: int, drafts: bool) -> None:
    drafter = MockDrafter(3, SEED, 0.8) if drafts else None
    with (
        InProcessVerifier(FailingEngine(1, at)) as verifier,
        EdgeClient(verifier.address, drafter) as client,
        InProcessVerifier(MockEngine()) as other,
        EdgeClient(other.address) as undisturbed,
    ):
        output = client.generate(PROMPT, PARAMS, seed=SEED)
        assert output.token_ids == WORDS
        assert output.text == undisturbed.generate(PROMPT, PARAMS, seed=SEED).text
        assert (output.metrics.failures, output.finish_reason) == (1, "length")
        assert client.generate(PROMPT, PARAMS, seed=SEED).metrics.failures == 0
        until(lambda: verifier.service.sessions == 0, "nothing is left of the session that failed")


def test_a_stop_text_is_found_across_the_failure() -> None:
    params = SamplingParams(max_tokens=COUNT)
    with InProcessVerifier(MockEngine()) as other, EdgeClient(other.address) as undisturbed:
        text = undisturbed.generate(PROMPT, params, seed=SEED).text
        assert len(text) == COUNT, "a letter for each token"
        params = SamplingParams(max_tokens=COUNT, stop=(text[8:16],))
        stopped = undisturbed.generate(PROMPT, params, seed=SEED)
    with InProcessVerifier(FailingEngine(1, BREAKS)) as verifier, EdgeClient(verifier.address) as client:
        output = client.generate(PROMPT, params, seed=SEED)
    assert (output.text, output.token_ids) == (stopped.text, stopped.token_ids) == (text[:8], WORDS[:16])
    assert output.metrics.failures == 1


def test_only_the_session_that_an_engine_fails_on_notices() -> None:
    with (
        InProcessVerifier(FailingEngine(1, BREAKS)) as verifier,
        EdgeClient(verifier.address) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        asked = {seed: pool.submit(client.generate, PROMPT, PARAMS, seed=seed) for seed in (SEED, 1, 2, 3)}
        for seed, one in asked.items():
            output = one.result(DEADLINE_S)
            assert output.token_ids == tuple(answer(PROMPT, seed, COUNT))
            assert output.metrics.failures == (seed == SEED)


def test_an_engine_that_never_takes_an_input_is_not_asked_for_ever() -> None:
    engine = FailingEngine(1000, BREAKS)
    with InProcessVerifier(engine) as verifier, EdgeClient(verifier.address, MockDrafter(3, SEED, 0.8)) as client:
        with pytest.raises(SessionError, match=f"seed {SEED} gives the same words") as caught:
            client.generate(PROMPT, PARAMS, seed=SEED)
        assert caught.value.reason == "ENGINE_FAILED"
        assert len(engine.struck) == 1 + MOST_FAILURES
        so_far = caught.value.so_far
        assert so_far is not None
        assert so_far.token_ids == WORDS[: len(so_far.token_ids)]
        assert so_far.token_ids
        assert so_far.finish_reason == "error"

        engine.sessions = 0  # it is mended
        new = [token for chunk in client.stream(PROMPT, PARAMS, continues=so_far) for token in chunk.token_ids]
        assert [*so_far.token_ids, *new] == list(WORDS)
        whole = client.generate(PROMPT, PARAMS, continues=so_far)
        assert (whole.token_ids, whole.seed) == (WORDS, SEED)
        assert whole.text == client.generate(PROMPT, PARAMS, seed=SEED).text
        with pytest.raises(ValueError, match="no other"):
            client.generate(PROMPT, PARAMS, seed=SEED + 1, continues=so_far)


def test_an_answer_is_gone_on_with_from_asyncio() -> None:
    async def ask(address: str) -> None:
        async with AsyncEdgeClient(address) as client:
            with pytest.raises(SessionError) as caught:
                await client.generate(PROMPT, PARAMS, seed=SEED)
            engine.sessions = 0
            so_far = caught.value.so_far
            assert (await client.generate(PROMPT, PARAMS, continues=so_far)).token_ids == WORDS

    engine = FailingEngine(1000, BREAKS)
    with InProcessVerifier(engine) as verifier:
        asyncio.run(ask(verifier.address))


def test_another_target_is_not_gone_on_with() -> None:
    with (
        InProcessVerifier(FailingEngine(1000, BREAKS)) as verifier,
        EdgeClient(verifier.address) as client,
        pytest.raises(SessionError) as caught,
    ):
        client.generate(PROMPT, PARAMS, seed=SEED)
    stranger = MockEngine()
    stranger.info = replace(stranger.info, fingerprint="stranger")
    with (
        InProcessVerifier(stranger) as verifier,
        EdgeClient(verifier.address) as client,
        pytest.raises(SessionError, match="another target"),
    ):
        client.generate(PROMPT, PARAMS, continues=caught.value.so_far)
