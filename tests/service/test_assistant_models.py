"""The assistant before a verifier of several models: what is told of an answer is told of the model that gave it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cloud_verifier.serving.address import Address
from edge_client.assistant.app import AssistantSettings
from edge_client.client import EdgeClient
from edge_client.link.channel import LinkSettings
from edge_client.types import OfflineAnswers
from tests.harness import InProcessVerifier
from tests.mock_engine import MockEngine
from tests.service.assistants import RunningAssistant, events, question
from tests.service.links import Road
from tests.service.raw import SEED
from tests.service.two_models import LettersDrafter, TwoModels


@pytest.fixture
def assistant(two_models: TwoModels) -> Iterator[RunningAssistant]:
    two_models.allow()
    with RunningAssistant(EdgeClient(two_models.address)) as running:
        yield running


def fingerprints(address: str) -> dict[str, str]:
    """What the verifier itself says, by model."""
    with EdgeClient(address) as client:
        told = {info.model: info.target_fingerprint for info in client.models()}
    assert len(set(told.values())) == len(told)
    return told


@pytest.mark.parametrize("model", ["mock", "other", "default"])
def test_fingerprint_and_log_probabilities_are_of_the_model_that_was_asked(
    two_models: TwoModels, assistant: RunningAssistant, model: str
) -> None:
    fingerprint = fingerprints(two_models.address)[model.replace("default", "mock")]
    client = assistant.openai()
    asked: Any = question(model=model, logprobs=True)
    for _ in range(2):
        said = client.chat.completions.create(**asked)
        assert said.model == model.replace("default", "mock")
        assert said.system_fingerprint == fingerprint
        told = said.choices[0].logprobs
        assert told is not None
        assert "".join(entry.token for entry in told.content or ()) == said.choices[0].message.content
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert {chunk.system_fingerprint for chunk in chunks} == {fingerprint}
    spelled = [entry.token for chunk in chunks if (told := chunk.choices[0].logprobs) for entry in told.content or ()]
    assert "".join(spelled) == said.choices[0].message.content
    legacy = client.completions.create(model=model, prompt="hello", max_tokens=5, seed=SEED, logprobs=0)
    assert legacy.choices[0].logprobs is not None
    assert "".join(legacy.choices[0].logprobs.tokens or ()) == legacy.choices[0].text


def test_all_models_are_listed_and_each_is_found(two_models: TwoModels, assistant: RunningAssistant) -> None:
    client = assistant.openai()
    listed = {model.id: model.to_dict()["fingerprint"] for model in client.models.list()}
    assert listed == fingerprints(two_models.address)
    assert list(listed) == ["mock", "other"]
    for name, fingerprint in listed.items():
        assert client.models.retrieve(name).to_dict()["fingerprint"] == fingerprint
    missing = assistant.ask("GET", "/v1/models/third")
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")
    assert "'mock', 'other'" in missing.error["message"]


def test_a_target_that_was_exchanged_is_told_at_once() -> None:
    def engine(weights: str) -> MockEngine:
        made = MockEngine()
        made.info = replace(made.info, fingerprint=weights)
        return made

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with RunningAssistant(EdgeClient(f"127.0.0.1:{port}")) as assistant:
        for weights in ("old", "new"):
            with InProcessVerifier(engine(weights), address=Address(port=port)) as verifier:
                assert assistant.chat().json["system_fingerprint"] == fingerprints(verifier.address)["mock"]


def test_an_offline_answer_is_checked_by_the_model_that_began_it(two_models: TwoModels) -> None:
    quick = LinkSettings(quiet_s=0.05, waiting_s=0.1, offline_after_s=0.2)
    with Road(two_models.address) as road:
        client = EdgeClient(road.address, LettersDrafter(SEED), link=quick, offline_answers=OfflineAnswers.AUTO)
        with RunningAssistant(client, AssistantSettings(offline=OfflineAnswers.AUTO)) as assistant:
            two_models.other.allow(2)
            body = json.dumps(question(model="other", stream=True)).encode()
            response = assistant.send("POST", "/v1/chat/completions", body)
            while b'"content":"' not in (line := response.readline()) or b'"content":""' in line:
                assert line, "the stream ended before its first word"
            road.refuse(True)
            road.cut()
            chunks = events(response)
            assert chunks[-1]["model"] == "other:offline"
            road.refuse(False)
            two_models.allow()
            checked = assistant.ask("POST", "/v1/outrider/check", {"id": chunks[0]["id"]}).json
    assert checked["committed_text"] + checked["kept_text"] + checked["verifier_text"] == checked["text"]
