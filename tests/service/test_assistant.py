"""The OpenAI-compatible endpoints, through OpenAI's own package and raw: words, streams, usage, what comes beside."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from edge_client.assistant.app import AssistantSettings
from edge_client.client import EdgeClient
from speculation.sampling import SamplingParams
from tests.harness import InProcessVerifier, LetterCodec, MockDrafter
from tests.mock_engine import MockEngine, answer
from tests.paged_mock_engine import PagedMockEngine
from tests.service.assistants import RunningAssistant, events, question
from tests.service.engines import GatedEngine
from tests.service.raw import until
from tests.service.test_vocabularies import BytesCodec

HELLO: Any = [{"role": "user", "content": "hello"}]
SEED = 9


def words(seed: int = SEED, count: int = 24, text: str = "hello", opening: tuple[int, ...] = (0,)) -> str:
    """What the mock target says to a chat of one message, or to plain text."""
    codec = LetterCodec()
    return codec.text(answer([*opening, *codec.encode_text(text)], seed, count))


@pytest.fixture(scope="module")
def verifier() -> Iterator[InProcessVerifier]:
    with InProcessVerifier(MockEngine(max_sequences=32)) as running:
        yield running


@pytest.fixture(scope="module")
def assistant(verifier: InProcessVerifier) -> Iterator[RunningAssistant]:
    client = EdgeClient(verifier.address, MockDrafter(1, SEED, 0.7), pace="sync:4")
    with RunningAssistant(client) as running:
        yield running


def test_a_chat_has_the_words_of_the_python_api(verifier: InProcessVerifier, assistant: RunningAssistant) -> None:
    said = assistant.openai().chat.completions.create(model="mock", messages=HELLO, max_tokens=24, seed=SEED)
    with EdgeClient(verifier.address) as client:
        expected = client.generate(HELLO, SamplingParams(max_tokens=24), seed=SEED)
    assert said.choices[0].message.content == expected.text == words()
    assert said.choices[0].finish_reason == "length"
    assert said.model == "mock"
    assert said.usage is not None
    assert (said.usage.prompt_tokens, said.usage.completion_tokens, said.usage.total_tokens) == (6, 24, 30)
    details = said.usage.completion_tokens_details
    assert details is not None
    assert details.accepted_prediction_tokens
    assert details.rejected_prediction_tokens


def test_a_stream_has_the_same_words(assistant: RunningAssistant) -> None:
    stream = assistant.openai().chat.completions.create(
        model="mock",
        messages=HELLO,
        max_completion_tokens=24,
        seed=SEED,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(said) == words()
    assert len([text for text in said if text]) > 1
    assert chunks[-2].choices[0].finish_reason == "length"
    assert not chunks[-1].choices
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 24
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_asynchronous_package_gets_them_too(assistant: RunningAssistant) -> None:
    async def both() -> tuple[str | None, str]:
        async with assistant.async_openai() as client:
            whole = await client.chat.completions.create(model="mock", messages=HELLO, max_tokens=24, seed=SEED)
            stream = await client.completions.create(
                model="mock", prompt="hello", max_tokens=24, seed=SEED, stream=True
            )
            return whole.choices[0].message.content, "".join([chunk.choices[0].text async for chunk in stream])

    assert asyncio.run(both()) == (words(), words(opening=()))


def test_a_completion_may_echo_its_prompt_and_is_short_by_default(assistant: RunningAssistant) -> None:
    client = assistant.openai()
    said = client.completions.create(model="default", prompt="hello", seed=SEED, echo=True)
    assert said.choices[0].text == "hello" + words(count=16, opening=())
    ids = LetterCodec().encode_text("hello")
    of_ids = client.completions.create(model="mock", prompt=ids, seed=SEED)
    assert of_ids.choices[0].text == words(count=16, opening=())


def test_several_choices_and_prompts(assistant: RunningAssistant) -> None:
    said = assistant.openai().completions.create(model="mock", prompt=["ab", "cd"], n=2, seed=SEED, max_tokens=8)
    assert [choice.index for choice in said.choices] == [0, 1, 2, 3]
    expected = [words(seed, 8, text, ()) for text in ("ab", "cd") for seed in (SEED, SEED + 1)]
    assert [choice.text for choice in said.choices] == expected
    assert said.usage is not None
    assert (said.usage.prompt_tokens, said.usage.completion_tokens) == (4, 32)


def test_usage_tells_what_of_a_next_turn_had_been_read_before() -> None:
    with (
        InProcessVerifier(PagedMockEngine(pages=64, page_tokens=4)) as verifier,
        RunningAssistant(EdgeClient(verifier.address)) as assistant,
    ):
        client = assistant.openai()
        first = client.chat.completions.create(model="mock", messages=HELLO, max_tokens=24, seed=SEED)
        talk = [*HELLO, first.choices[0].message.model_dump(include={"role", "content"}), *HELLO]
        second = client.chat.completions.create(model="mock", messages=talk, max_tokens=4, seed=SEED)
        stream = client.chat.completions.create(
            model="mock", messages=talk, n=2, max_tokens=4, stream=True, stream_options={"include_usage": True}
        )
        usages = [first.usage, second.usage, list(stream)[-1].usage]
    details = [usage.prompt_tokens_details for usage in usages if usage is not None]
    cached = [detail.cached_tokens for detail in details if detail is not None]
    # Of hello, 24 tokens and hello after the opening one: what lies in full pages but for the answer's last, unread
    # token; and once the second turn had been read, all full pages. A prompt counts once for its choices.
    assert cached == [0, 28, 32]


def test_tools_that_need_not_be_used_are_left_aside_and_that_is_told(assistant: RunningAssistant) -> None:
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    asked: Any = {"model": "mock", "messages": HELLO, "max_tokens": 24, "seed": SEED, "tools": tools}
    client = assistant.openai()
    said = client.chat.completions.create(**asked)
    assert said.choices[0].message.content == words()
    assert said.choices[0].message.tool_calls is None
    assert "tools were offered" in said.to_dict()["metrics"]["notices"][0]
    last = list(client.chat.completions.create(**asked, stream=True))[-1]
    assert "tools were offered" in last.to_dict()["metrics"]["notices"][0]
    chosen = client.chat.completions.create(**asked, tool_choice="none")
    assert chosen.to_dict()["metrics"]["notices"] == []


def test_an_answer_may_be_as_long_as_the_context_and_as_sure_as_can_be() -> None:
    with (
        InProcessVerifier(MockEngine(context_limit=64)) as verifier,
        RunningAssistant(EdgeClient(verifier.address)) as assistant,
    ):
        client = assistant.openai()
        whole = client.chat.completions.create(model="mock", messages=HELLO, max_tokens=-1, seed=SEED, top_p=0)
        assert whole.usage is not None
        assert whole.usage.total_tokens == 64
        text = client.completions.create(model="mock", prompt="hello", max_tokens=-1, seed=SEED, stop="")
        assert text.usage is not None
        assert text.usage.total_tokens == 64


def test_what_is_left_aside_is_told(assistant: RunningAssistant) -> None:
    said = assistant.openai().chat.completions.create(
        model="mock", messages=HELLO, max_tokens=2, reasoning_effort="low", verbosity="low"
    )
    metrics: Any = said.to_dict()["metrics"]
    assert [notice.split()[0] for notice in metrics["notices"]] == ["reasoning_effort", "verbosity"]


def test_several_choices_in_one_stream(assistant: RunningAssistant) -> None:
    texts = ["", ""]
    stream = assistant.openai().chat.completions.create(
        model="mock",
        messages=HELLO,
        n=2,
        seed=SEED,
        max_tokens=24,
        stream=True,
    )
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [words(), words(SEED + 1)]


def test_parts_stop_texts_and_roles(assistant: RunningAssistant) -> None:
    whole = words()
    said = assistant.openai().chat.completions.create(
        model="mock",
        messages=[{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        seed=SEED,
        stop=[whole[5:8]],
        max_tokens=24,
    )
    assert said.choices[0].message.content == whole[:5]
    assert said.choices[0].finish_reason == "stop"


def test_log_probabilities_have_text_and_bytes() -> None:
    with (
        InProcessVerifier(MockEngine(), BytesCodec()) as verifier,
        RunningAssistant(EdgeClient(verifier.address)) as assistant,
    ):
        client = assistant.openai()
        chat = client.chat.completions.create(model="mock", messages=HELLO, max_tokens=4, seed=SEED, logprobs=True)
        told = chat.choices[0].logprobs
        assert told is not None
        assert told.content is not None
        ids = answer([0, *LetterCodec().encode_text("hello")], SEED, 4)
        spellings = [BytesCodec.vocabulary.spellings[token] for token in ids]
        assert [bytes(entry.bytes or ()) for entry in told.content] == spellings
        assert [entry.logprob for entry in told.content] == [-float(token) for token in ids]
        stream = client.chat.completions.create(
            model="mock",
            messages=HELLO,
            max_tokens=4,
            seed=SEED,
            logprobs=True,
            stream=True,
        )
        streamed = [one.choices[0].logprobs.content or [] for one in stream if one.choices[0].logprobs]
        assert [entry for entries in streamed for entry in entries] == told.content
        legacy = client.completions.create(model="mock", prompt="hello", max_tokens=3, seed=SEED, logprobs=0)
        assert legacy.choices[0].logprobs is not None
        assert len(legacy.choices[0].logprobs.tokens or ()) == 3


def test_metrics_come_with_every_answer(assistant: RunningAssistant) -> None:
    whole = assistant.chat().json["metrics"]
    stream = events(assistant.send("POST", "/v1/chat/completions", _encoded(stream=True)))
    assert set(whole) == set(stream[-1]["metrics"])
    assert whole["seed"] == SEED
    assert whole["accepted_tokens"] > 0
    assert whole["forwards"] < 24
    assert whole["total_ms"] >= whole["ttft_ms"] > 0


def test_a_seed_of_the_assistants_own_gives_the_same_words_again(assistant: RunningAssistant) -> None:
    first = assistant.chat({"seed": None, "temperature": 1}).json
    again = assistant.chat({"seed": first["metrics"]["seed"], "temperature": 1}).json
    assert first["choices"][0]["message"] == again["choices"][0]["message"]
    assert first["metrics"]["seed"] != assistant.chat({"seed": None}).json["metrics"]["seed"]
    assert assistant.chat({"seed": -2}).json["metrics"]["seed"] == 2**64 - 2
    drawn = {assistant.chat({"seed": -1}).json["metrics"]["seed"] for _ in range(2)}
    assert len(drawn) == 2
    assert 2**64 - 1 not in drawn


def test_the_ride_is_told_when_asked_for(assistant: RunningAssistant) -> None:
    asked = _encoded(stream=True, outrider={"ride": True})
    chunks = events(assistant.send("POST", "/v1/chat/completions", asked))
    told = [chunk["outrider"] for chunk in chunks if "outrider" in chunk]
    tokens = [token for one in told for token in one["tokens"]]
    assert "".join(token["text"] for token in tokens) == words()
    assert {token["writer"] for token in tokens} >= {"device", "corrected"}
    timeline = [event for one in told for event in one["events"]]
    committed = [event for event in timeline if event["kind"] == "committed"]
    assert [event["position"] for event in committed] == _starts(committed)
    told_of = sum(event["tokens"] for event in committed)  # no word waits for the timeline: its end may be missing
    assert told_of > 12
    assert sum(event["used"] for event in committed) == sum(token["writer"] == "device" for token in tokens[:told_of])
    assert any(event["kind"] == "sent" and event["tokens"] for event in timeline)
    live = told[-1]["live"]
    assert 0 < live["acceptance"] <= 1
    assert live["tokens_per_s"] > 0
    assert live["lookahead_tokens"] >= 1
    plain = events(assistant.send("POST", "/v1/chat/completions", _encoded(stream=True)))
    assert not any("outrider" in chunk for chunk in plain)


def test_one_request_may_stream_plainly(assistant: RunningAssistant) -> None:
    plain = assistant.chat({"outrider": {"pace": "streaming"}}).json
    assert plain["choices"][0]["message"]["content"] == words()
    assert plain["metrics"]["drafted_tokens"] == 0
    assert plain["metrics"]["forwards"] == 24


def test_many_at_once_share_a_channel_and_a_drafter(assistant: RunningAssistant) -> None:
    async def ask() -> list[str | None]:
        async with assistant.async_openai() as client:
            asked = [
                client.chat.completions.create(model="mock", messages=HELLO, max_tokens=40, seed=seed)
                for seed in range(24)
            ]
            return [said.choices[0].message.content for said in await asyncio.gather(*asked)]

    assert asyncio.run(ask()) == [words(seed, 40) for seed in range(24)]


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_cancels_the_session(stream: bool) -> None:
    engine = GatedEngine()
    with (
        InProcessVerifier(engine) as verifier,
        RunningAssistant(EdgeClient(verifier.address)) as assistant,
    ):
        engine.allow(1)
        client = assistant.openai()
        if stream:
            opened = client.chat.completions.create(model="mock", messages=HELLO, stream=True)
            next(opened)
            opened.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                client.chat.completions.create(model="mock", messages=HELLO, timeout=0.3)
        until(lambda: verifier.service.sessions == 0, "the verifier forgets it")
        engine.allow(10_000)
        until(lambda: not engine.sequences, "its place is free")


def test_a_slow_answer_is_kept_alive() -> None:
    engine = GatedEngine()
    with (
        InProcessVerifier(engine) as verifier,
        RunningAssistant(EdgeClient(verifier.address), AssistantSettings(keep_alive_s=0.02)) as assistant,
    ):
        response = assistant.send("POST", "/v1/chat/completions", _encoded(stream=True))
        assert response.readline() == b": keep-alive\n"
        engine.allow(10_000)
        assert response.read().decode().count("data: [DONE]") == 1


def test_models_health_readiness_metrics_version(assistant: RunningAssistant) -> None:
    models = assistant.openai().models.list().data
    assert [model.id for model in models] == ["mock"]
    assert assistant.openai().models.retrieve("mock").id == "mock"
    assert assistant.ask("GET", "/health").json == {"status": "ok"}
    assert assistant.ask("GET", "/ready").json == {"status": "ready", "model": "mock", "drafter": True}
    assert assistant.ask("GET", "/status").json == {
        "verifier": "reachable",
        "model": "mock",
        "drafter": True,
        "offline_answers": "never",
        "trusted": True,
    }
    assert assistant.ask("GET", "/version").json["version"]
    before = _sample(assistant, "outrider:generation_tokens_total")
    assistant.chat()
    assert _sample(assistant, "outrider:generation_tokens_total") == before + 24
    assert _sample(assistant, "outrider:num_requests_running") == 0


def test_a_request_keeps_its_id(assistant: RunningAssistant) -> None:
    assert assistant.chat(X_Request_Id="mine-1").headers["x-request-id"] == "mine-1"
    assert assistant.chat(X_Request_Id="no such id").headers["x-request-id"] != "no such id"


def test_a_page_may_load_nothing_from_elsewhere(verifier: InProcessVerifier, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<!doctype html><title>Outrider</title>")
    with RunningAssistant(EdgeClient(verifier.address), AssistantSettings(page=tmp_path)) as assistant:
        page = assistant.ask("GET", "/")
        assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        assert assistant.ask("GET", "/../secret").status == 404
        assert assistant.ask("GET", "/v1/models").status == 200


def _sample(assistant: RunningAssistant, name: str) -> float:
    lines = assistant.ask("GET", "/metrics").body.decode().splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


def _starts(committed: list[dict[str, int]]) -> list[int]:
    starts = [0]
    for event in committed[:-1]:
        starts.append(starts[-1] + event["tokens"])
    return starts


def _encoded(**fields: object) -> bytes:
    return json.dumps(question(**fields)).encode()
