"""Several models behind one port."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from outrider.v1 import verifier_pb2 as pb
from outrider.v1.verifier_pb2_grpc import VerifierServiceServicer

from cloud_verifier.engines.base import TargetEngine
from cloud_verifier.model_source import ModelSourceError, parse_models
from cloud_verifier.serving.service import ServiceSettings, VerifierService
from edge_client.client import EdgeClient, SamplingParams
from edge_client.errors import SessionError
from speculation.pace.base import PATIENCE_UNLIMITED_MS
from tests.harness import InProcessVerifier
from tests.mock_engine import MockEngine, answer
from tests.service.raw import DEADLINE_S, PROMPT, SEED, Stream, opening

WORDS = answer(PROMPT, SEED, 8)
SHORT = pb.SamplingParams(max_tokens=8)


class OtherEngine(MockEngine):
    """Of other words: it begins every answer with token 9."""

    def _evaluate(self, block):  # type: ignore[no-untyped-def]
        choices = super()._evaluate(block)
        return type(choices)([9 for _ in choices.tokens], choices.logprobs)


@pytest.fixture
def verifier() -> Iterator[InProcessVerifier]:
    others: dict[str, TargetEngine] = {"other": OtherEngine()}
    with InProcessVerifier(MockEngine(), others=others, service=ServiceSettings(open_timeout_s=0.2)) as subject:
        yield subject


def test_each_model_answers_with_its_own_words(verifier: InProcessVerifier) -> None:
    for model, words in (("", WORDS), ("mock", WORDS), ("other", [9] * 8)):
        with EdgeClient(verifier.address, model=model) as client:
            assert list(client.generate(PROMPT, SamplingParams(max_tokens=8), seed=SEED).token_ids) == words
            assert client._channel.model_info(model).model == (model or "mock")


def test_all_models_are_listed_the_clients_first(verifier: InProcessVerifier) -> None:
    with EdgeClient(verifier.address) as client:
        assert [info.model for info in client.models()] == ["mock", "other"]
    with EdgeClient(verifier.address, model="other") as client:
        assert [info.model for info in client.models()] == ["other", "mock"]
        assert client.model_info().model == "other"
        assert client.model_info(model="mock").model == "mock"
    with EdgeClient(verifier.address, model="third") as client, pytest.raises(SessionError, match="'mock', 'other'"):
        client.models()


def test_an_older_verifier_that_cannot_list_them_tells_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VerifierService, "ListModels", VerifierServiceServicer.ListModels)
    with InProcessVerifier(MockEngine()) as verifier, EdgeClient(verifier.address) as client:
        assert [info.model for info in client.models()] == ["mock"]


def test_an_unknown_model_is_told_which_there_are(verifier: InProcessVerifier) -> None:
    with Stream(verifier.address, opening(model="third")) as stream:
        refusal = stream.refusal()
    assert refusal[:2] == ("NOT_FOUND", "MODEL")
    assert "'mock', 'other'" in refusal.sentence
    with EdgeClient(verifier.address) as client, pytest.raises(SessionError, match="'mock', 'other'"):
        client._channel.model_info("third")


def test_a_session_is_resumed_where_it_was_opened(verifier: InProcessVerifier) -> None:
    request = opening(model="other", sampling=SHORT, patience_ms=PATIENCE_UNLIMITED_MS)
    with Stream(verifier.address, request) as stream:
        session_id = stream.opened().session_id
        said = stream.tokens(1)
        stream.cut()
    resume = pb.Resume(session_id=session_id, known_length=len(PROMPT) + len(said))
    with Stream(verifier.address, opening(resume=resume)) as stream:
        stream.half_close()
        assert stream.opened().model_info.model == "other"
        assert [*said, *stream.rest().tokens] == [9] * 8
    with Stream(verifier.address, opening(resume=pb.Resume(session_id="unknown", known_length=3))) as stream:
        assert stream.refusal()[:2] == ("NOT_FOUND", "SESSION")


def test_what_is_no_open_is_refused_as_ever(verifier: InProcessVerifier) -> None:
    with Stream(verifier.address) as silent:
        assert silent.refusal().reason == "OPEN_TIMEOUT"
    with Stream(verifier.address) as stream:
        stream.send(ping=pb.Ping())
        assert stream.refusal().reason == "NOT_OPEN"
    with grpc.insecure_channel(verifier.address) as channel:
        generate: Any = channel.stream_stream("/outrider.v1.VerifierService/Generate")
        assert Stream.refused(generate(iter([b"\xff\xff"]), timeout=DEADLINE_S)).reason == "UNDECODABLE"


def test_health_is_told_by_model_and_all_drain_together(verifier: InProcessVerifier) -> None:
    waiting = opening(model="other", sampling=SHORT, patience_ms=PATIENCE_UNLIMITED_MS)
    with Stream(verifier.address, waiting) as stream, grpc.insecure_channel(verifier.address) as channel:
        stream.opened()
        stub = health_pb2_grpc.HealthStub(channel)
        for status in (health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING):
            for model in ("mock", "other"):
                service = f"outrider.v1.VerifierService/{model}"
                reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE_S)
                assert reply.status == status
            asyncio.run_coroutine_threadsafe(verifier.draining.drain(0.0), verifier.loop).result(DEADLINE_S)
        assert stream.refusal().reason == "DRAINING"


def test_models_are_named_on_the_command_line() -> None:
    assert parse_models(["org/small", "big=/models/a=b/"], None) == {"small": "org/small", "big": "/models/a=b/"}
    assert parse_models(["/models/a=b"], None) == {"a=b": "/models/a=b"}
    assert parse_models(["org/small"], "mine") == {"mine": "org/small"}


def test_demo_names_the_demo_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    target = str(Path(__file__).parents[2] / "models" / "demo" / "target")
    assert parse_models(["demo"], None) == {"demo": target}
    assert parse_models(["demo", "again=demo"], None) == {"demo": target, "again": target}
    (tmp_path / "elsewhere" / "demo").mkdir()
    assert parse_models(["demo"], None) == {"demo": "demo"}, "a folder of that name is the user's own"


@pytest.mark.parametrize(
    ("values", "name", "sentence"),
    [
        (["a/x", "b/x"], None, "two models would have the name 'x'"),
        (["a/x", "b/y"], "mine", "name each"),
        (["=x"], None, "expected NAME=MODEL"),
        (["x="], None, "expected NAME=MODEL"),
    ],
)
def test_names_that_do_not_work_are_explained(values: list[str], name: str | None, sentence: str) -> None:
    with pytest.raises(ModelSourceError, match=sentence):
        parse_models(values, name)
