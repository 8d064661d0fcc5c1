"""Answers that the device finishes alone, as chat apps see them: when, how they are marked, and what a check says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.client import HTTPResponse
from typing import Any

import pytest

from edge_client.assistant import upstream
from edge_client.assistant.app import AssistantSettings
from edge_client.client import EdgeClient
from edge_client.types import OfflineAnswers
from speculation.pace.base import Synchronous
from tests.harness import InProcessVerifier, LetterCodec
from tests.mock_engine import answer
from tests.service.assistants import RunningAssistant, events, question
from tests.service.engines import GatedEngine
from tests.service.links import Road
from tests.service.raw import SEED
from tests.service.test_offline import NOWHERE, QUICK, World
from tests.speaking import SpeakingDrafter

HEARD = [0, *LetterCodec().encode_text("hello")]
WORDS = LetterCodec().text(answer(HEARD, SEED, 120))
AUTO = {"offline": "auto"}


@pytest.fixture
def world() -> Iterator[World]:
    engine = GatedEngine()
    with InProcessVerifier(engine) as verifier, Road(verifier.address) as road:
        yield World(engine, road)
        engine.allow(10_000)


def assistant_of(client: EdgeClient, offline: OfflineAnswers) -> RunningAssistant:
    return RunningAssistant(client, AssistantSettings(offline=offline, model_info_timeout_s=0.3))


def alone(offline: OfflineAnswers, wrong_at: int = -1) -> RunningAssistant:
    """An assistant whose verifier is not there."""
    client = EdgeClient(NOWHERE, SpeakingDrafter(SEED, wrong_at), link=QUICK, offline_answers=OfflineAnswers.AUTO)
    return assistant_of(client, offline)


def begun(assistant: RunningAssistant, **fields: Any) -> HTTPResponse:
    """A stream of which the first word has come."""
    body = json.dumps(question(max_tokens=120, stream=True, **fields)).encode()
    response = assistant.send("POST", "/v1/chat/completions", body)
    while b'"content":"' not in (line := response.readline()) or b'"content":""' in line:
        assert line, "the stream ended before its first word"
    response.first = json.loads(line.removeprefix(b"data: "))  # type: ignore[attr-defined]
    return response


def said(chunks: list[Any]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


@pytest.mark.parametrize("wrong", [False, True])
def test_a_stream_goes_on_alone_and_can_be_checked(world: World, wrong: bool) -> None:
    drafter = SpeakingDrafter(SEED, len(HEARD) + 100 if wrong else -1)
    client = world.client(drafter, pace=lambda: Synchronous(4))
    with assistant_of(client, OfflineAnswers.AUTO) as assistant:
        world.engine.allow(2)
        stream = begun(assistant, outrider={"ride": True})
        world.lose()
        chunks: list[Any] = [stream.first, *events(stream)]  # type: ignore[attr-defined]
        offline = chunks[-1]["choices"][0]
        assert offline["finish_reason"] == "length"
        part = chunks[-1]["outrider"]["offline"]
        own = said([chunk for chunk in chunks if chunk["model"] == "mock:offline"])
        assert own == part["text"]
        assert said(chunks).endswith(own)
        assert chunks[0]["model"] == "mock"
        links = [chunk["outrider"]["link"] for chunk in chunks[:-1]]
        assert "waiting" in links
        assert links[-1] == "offline"
        tokens = [token for chunk in chunks[:-1] for token in chunk["outrider"]["tokens"]]
        assert "".join(token["text"] for token in tokens if token["writer"] == "offline") == own
        assert chunks[-1]["metrics"]["offline_tokens"] == len(own)
        world.find()
        checked = assistant.ask("POST", "/v1/outrider/check", {"id": chunks[0]["id"]}).json
    assert checked["agrees"] is not wrong
    assert checked["text"] == WORDS
    assert checked["committed_text"] + checked["kept_text"] + checked["device_text"] == said(chunks)
    assert checked["committed_text"] + checked["kept_text"] + checked["verifier_text"] == WORDS


def test_an_answer_that_waits_goes_on_by_itself(world: World) -> None:
    with assistant_of(world.client(SpeakingDrafter(SEED)), OfflineAnswers.NEVER) as assistant:
        world.engine.allow(2)
        stream = begun(assistant)
        chunks: list[Any] = [stream.first]  # type: ignore[attr-defined]
        world.lose()
        while (line := stream.readline()) != b": link: waiting\n":
            if line.startswith(b"data: "):
                chunks.append(json.loads(line.removeprefix(b"data: ")))
        world.find()
        chunks += events(stream)
    assert said(chunks) == WORDS
    assert {chunk["model"] for chunk in chunks} == {"mock"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_question_that_nobody_heard_is_answered_and_marked(stream: bool) -> None:
    with alone(OfflineAnswers.AUTO) as assistant:
        body = json.dumps(question(stream=stream)).encode()
        response = assistant.send("POST", "/v1/chat/completions", body)
        assert response.getheader("X-Outrider-Offline") == "true"
        if stream:
            chunks = events(response)
            assert said(chunks) == WORDS[:24]
            assert {chunk["model"] for chunk in chunks} == {"default:offline"}
            return
        whole = json.loads(response.read())
        assert whole["model"] == "default:offline"
        assert whole["choices"][0]["message"]["content"] == WORDS[:24]
        assert whole["choices"][0]["outrider"]["offline"]["text"] == WORDS[:24]
        assert whole["usage"]["completion_tokens"] == 24


@pytest.mark.parametrize(
    ("allowed", "fields", "status"),
    [
        (OfflineAnswers.NEVER, {}, 503),
        (OfflineAnswers.NEVER, {"outrider": AUTO}, 422),
        (OfflineAnswers.NEVER, {"model": "mock:offline"}, 422),
        (OfflineAnswers.ASK, {}, 503),
        (OfflineAnswers.ASK, {"outrider": AUTO}, 200),
        (OfflineAnswers.ASK, {"model": "mock:offline"}, 200),
        (OfflineAnswers.AUTO, {"outrider": {"offline": "never"}}, 503),
    ],
)
def test_who_may_say_so(allowed: OfflineAnswers, fields: dict[str, Any], status: int) -> None:
    with alone(allowed) as assistant:
        reply = assistant.chat(fields)
        assert reply.status == status
        assert ("x-outrider-offline" in reply.headers) == (status == 200)


@pytest.mark.parametrize(
    ("body", "status"), [({"id": "chatcmpl-5"}, 404), ({}, 400), ([1], 400), ({"id": "a", "choice": "b"}, 400)]
)
def test_only_what_was_said_alone_can_be_checked(world: World, body: Any, status: int) -> None:
    with assistant_of(world.client(None), OfflineAnswers.NEVER) as assistant:
        reply = assistant.ask("POST", "/v1/outrider/check", body)
        assert reply.status == status
        assert reply.error["param"] == "id"


@pytest.mark.parametrize(
    ("allowed", "ids", "ready"),
    [
        (OfflineAnswers.AUTO, ["default"], 200),
        (OfflineAnswers.ASK, ["default:offline"], 503),
        (OfflineAnswers.NEVER, None, 503),
    ],
)
def test_a_chat_app_finds_something_to_choose_without_a_verifier(
    allowed: OfflineAnswers, ids: list[str] | None, ready: int
) -> None:
    with alone(allowed) as assistant:
        assert assistant.ask("GET", "/ready").status == ready
        listed = assistant.ask("GET", "/v1/models")
        if ids is None:
            assert listed.status == 503
            return
        assert [model["id"] for model in listed.json["data"]] == ids
        assert assistant.ask("GET", f"/v1/models/{ids[0]}").status == 200
        client = assistant.openai()
        said = client.chat.completions.create(**question(model=client.models.list().data[0].id))
        assert said.choices[0].message.content == WORDS[:24]


def test_a_device_without_a_model_of_its_own_lists_nothing() -> None:
    client = EdgeClient(NOWHERE, "ngram", link=QUICK, offline_answers=OfflineAnswers.AUTO)
    with assistant_of(client, OfflineAnswers.AUTO) as assistant:
        assert assistant.ask("GET", "/v1/models").status == 503
        assert assistant.ask("GET", "/ready").status == 503


def test_what_the_verifier_served_can_be_chosen_while_it_is_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "SHARED_S", 0.0)
    with assistant_of(world.client(SpeakingDrafter(SEED)), OfflineAnswers.AUTO) as assistant:
        before = assistant.ask("GET", "/v1/models").json
        world.lose()
        assert assistant.ask("GET", "/v1/models").json == before
        assert assistant.ask("GET", "/ready").json["model"] == "mock:offline"
        assert assistant.chat({"model": "mock"}).json["model"] == "mock:offline"
