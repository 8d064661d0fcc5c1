"""What a growing answer tells of itself: text, writer and log-probability of every token; one ride's settings."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from edge_client.client import EdgeClient
from edge_client.types import RideSettings, StreamChunk
from speculation.pace.observed import Committed, Diary, Sent
from speculation.sampling import SamplingParams
from tests.harness import InProcessVerifier, LetterCodec, MockDrafter, queue_of
from tests.mock_engine import MockEngine, answer
from tests.service.engines import GatedEngine
from tests.service.raw import DEADLINE_S, PROMPT, SEED, until

PARAMS = SamplingParams(temperature=0.0, max_tokens=120, logprobs=0)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with InProcessVerifier(MockEngine()) as verifier:
        yield verifier.address


def chunks(address: str, ride: RideSettings | None = None, pace: str = "sync:4") -> list[StreamChunk]:
    with EdgeClient(address, MockDrafter(1, SEED, 0.7), pace=pace) as client:
        return list(client.stream(PROMPT, PARAMS, seed=SEED, ride=ride))


def test_every_token_has_its_text_its_writer_and_its_log_probability(address: str) -> None:
    news = chunks(address)
    ids = [token for chunk in news for token in chunk.token_ids]
    assert ids == answer(PROMPT, SEED, 120)
    for chunk in news:
        assert list(chunk.texts) == [LetterCodec().text([token]) for token in chunk.token_ids]
        assert "".join(chunk.texts) == chunk.text
        assert [entry.token_id for entry in chunk.logprobs] == list(chunk.token_ids)
        assert not any(device and other for device, other in zip(chunk.drafted, chunk.corrected, strict=True))
    assert any(len(chunk.token_ids) > 1 for chunk in news)
    drafted = sum(sum(chunk.drafted) for chunk in news)
    corrected = sum(sum(chunk.corrected) for chunk in news)
    assert drafted > 0
    assert corrected > 0
    assert drafted + corrected <= len(ids)


def test_one_answer_may_stream_plainly(address: str) -> None:
    output = chunks(address, RideSettings(drafts=False))[-1].output
    assert output is not None
    assert output.metrics.drafted_tokens == 0
    assert output.token_ids == tuple(answer(PROMPT, SEED, 120))


def test_a_diary_holds_what_was_sent_and_what_came_back(address: str) -> None:
    diary = Diary()
    output = chunks(address, RideSettings(diary=diary))[-1].output
    assert output is not None
    commits = [event for event in diary.events if isinstance(event, Committed)]
    assert len(commits) == output.metrics.commits
    assert sum(commit.tokens for commit in commits) == len(output.token_ids)
    assert sum(commit.used for commit in commits) == output.metrics.accepted_tokens
    sent = sum(isinstance(event, Sent) for event in diary.events)
    assert output.metrics.draft_messages <= sent <= output.metrics.draft_messages + 1  # the last as the answer ended
    assert commits[0].position == len(PROMPT)


def test_one_answer_may_ask_for_another_model(address: str) -> None:
    with EdgeClient(address, model="another") as client:
        assert client.generate(PROMPT, PARAMS, ride=RideSettings(model="mock")).finish_reason == "length"


def test_an_answer_that_found_the_drafter_taken_gets_it_in_mid_answer() -> None:
    engine = GatedEngine()
    with (
        InProcessVerifier(engine) as verifier,
        EdgeClient(verifier.address, MockDrafter(1, SEED, 1.0), pace="sync:4") as client,
        ThreadPoolExecutor(1) as thread,
    ):
        first = client.stream(PROMPT, SamplingParams(), seed=SEED)
        engine.allow(1)
        next(first)  # it has the drafter
        second = thread.submit(client.generate, PROMPT, SamplingParams(max_tokens=200), seed=SEED)
        until(lambda: verifier.service.sessions == 2, "the second one is open")
        until(lambda: queue_of(client)._waiting != {}, "it waits for the drafter")
        first.close()
        until(lambda: queue_of(client)._waiting == {}, "the drafter is handed over")
        engine.allow(10_000)
        output = second.result(DEADLINE_S)
        assert output.token_ids == tuple(answer(PROMPT, SEED, 200))
        assert output.metrics.drafted_tokens > 0
