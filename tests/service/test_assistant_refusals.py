"""What the assistant refuses, and how it says so."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
from outrider.v1 import verifier_pb2 as pb

from cloud_verifier.security.authentication import Authentication
from cloud_verifier.security.keys import KeyFile, KeyStore
from cloud_verifier.serving.admission import AdmissionSettings
from cloud_verifier.serving.service import ServiceSettings
from edge_client.assistant import upstream
from edge_client.assistant.access import AccessSettings, allowed_hosts
from edge_client.assistant.app import AssistantSettings
from edge_client.client import AsyncEdgeClient, EdgeClient
from edge_client.errors import SessionError
from edge_client.link.channel import LinkSettings
from tests.harness import InProcessVerifier
from tests.mock_engine import MockEngine
from tests.service.assistants import RunningAssistant, question
from tests.service.conftest import QuotingCodec
from tests.service.engines import GatedEngine
from tests.service.raw import until

HELLO: Any = [{"role": "user", "content": "hello"}]
ELSEWHERE = "https://elsewhere.example"


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


@pytest.fixture(scope="module")
def assistant() -> Iterator[RunningAssistant]:
    engine = MockEngine(context_limit=64)
    settings = AssistantSettings(AccessSettings(max_bytes=4096))
    with (
        InProcessVerifier(engine, QuotingCodec()) as verifier,
        RunningAssistant(EdgeClient(verifier.address), settings) as running,
    ):
        yield running


@pytest.mark.parametrize(
    ("fields", "status", "code", "param", "sentence"),
    [
        ({"temperature": -1}, 400, "invalid_value", "temperature", "between 0.0 and 100.0"),
        ({"temperature": "hot"}, 400, "invalid_value", "temperature", "valid number"),
        ({"max_tokens": 0}, 400, "invalid_value", "max_tokens", "at least 1"),
        ({"max_tokens": -2}, 400, "invalid_value", "max_tokens", "greater than or equal to -1"),
        ({"top_p": -0.1}, 400, "invalid_value", "top_p", "above 0"),
        ({"grammar": "root ::= x"}, 400, "unsupported_parameter", "grammar", "grammar is not supported here"),
        (
            {"messages": [*HELLO, {"role": "assistant", "content": "so", "prefix": True}]},
            400,
            "unsupported_parameter",
            "messages",
            "messages.1",
        ),
        ({"echo": True}, 400, "unsupported_parameter", "echo", "not echoed"),
        ({"messages": []}, 400, "invalid_value", "messages", "at least 1"),
        ({"messages": None}, 400, "invalid_value", "messages", "list"),
        ({"messages": [{"content": "hi"}]}, 400, "invalid_value", "messages", "messages.0.role"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "invalid_value", None, "half a character"),
        ({"n": 17}, 400, "invalid_value", "n", "less than or equal to 16"),
        ({"stop": ["a"] * 17}, 400, "invalid_value", "stop", "at most 16"),
        ({"logit_bias": {"x": 1}}, 400, "invalid_value", "logit_bias", "token ids"),
        ({"logit_bias": {"5": 101}}, 400, "invalid_value", "logit_bias", "between -100 and 100"),
        ({"logit_bias": {"500": 1}}, 400, "token_id", None, "below 64"),
        ({"top_logprobs": 2}, 400, "invalid_value", "top_logprobs", "set logprobs to true"),
        (
            {"stream": None, "stream_options": {"include_usage": True}},
            400,
            "invalid_value",
            "stream_options",
            "set stream to true",
        ),
        ({"stream": None, "outrider": {"ride": True}}, 400, "invalid_value", "outrider", "set stream to true"),
        ({"outrider": {"rides": True}}, 400, "invalid_value", "outrider", "outrider.rides"),
        ({"outrider": {"pace": "fast"}}, 400, "invalid_value", "outrider", "'riding' or 'streaming'"),
        ({"messages": [{"role": "user", "content": "a" * 70}]}, 400, "context_length_exceeded", None, "holds 64"),
        ({"model": "gpt-9"}, 404, "model_not_found", "model", "serves 'mock'"),
        ({"tools": TOOLS, "tool_choice": "required"}, 400, "unsupported_parameter", "tools", "leave out tool_choice"),
        (
            {"functions": TOOLS, "function_call": {"name": "f"}},
            400,
            "unsupported_parameter",
            "functions",
            "cannot call functions",
        ),
        ({"response_format": {"type": "json_object"}}, 400, "unsupported_parameter", "response_format", "grammar"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
            400,
            "unsupported_parameter",
            "response_format",
            "grammar",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
            400,
            "unsupported_parameter",
            "messages",
            "image_url",
        ),
        ({"messages": [{"role": "tool", "content": "5"}]}, 400, "unsupported_parameter", "messages", "tools"),
        ({"messages": [{"role": "system", "content": "be"}]}, 422, "prompt_refused", None, "only user and assistant"),
        ({"padding": "x" * 5000}, 413, "request_too_large", None, "4096 bytes"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_has_openais_shape(
    assistant: RunningAssistant,
    fields: dict[str, Any],
    stream: bool,
    status: int,
    code: str,
    param: str | None,
    sentence: str,
) -> None:
    reply = assistant.chat({"stream": stream} | fields)
    assert reply.status == status, reply.body
    assert set(reply.error) == {"message", "type", "param", "code"}
    assert (reply.error["code"], reply.error["param"], reply.error["type"]) == (code, param, "invalid_request_error")
    assert sentence in reply.error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tools": TOOLS, "tool_choice": "none"},
        {"tools": TOOLS, "tool_choice": "auto", "parallel_tool_calls": True},
        {"functions": TOOLS},
        {"response_format": {"type": "text"}},
        {
            "grammar": "",
            "repeat_penalty": 1.0,
            "skip_special_tokens": True,
            "chat_template_kwargs": {},
            "min_tokens": 0,
        },
        {"stop": ["", ""], "modalities": ["text"], "add_special_tokens": False, "add_generation_prompt": True},
        {"user": "me", "store": False, "metadata": {}, "never_heard_of": 5, "prediction": None, "top_k": -1},
        {"temperature": None, "stop": None, "n": None, "stream": None, "logit_bias": None},
    ],
)
def test_what_does_not_matter_is_no_fault(assistant: RunningAssistant, fields: dict[str, Any]) -> None:
    assert assistant.chat(fields).status == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 4000])
def test_a_body_that_is_no_object_is_refused(assistant: RunningAssistant, body: bytes) -> None:
    reply = assistant.ask("POST", "/v1/chat/completions", body)
    assert reply.status == 400
    assert reply.error["code"] in ("invalid_json", "no_object")


def test_a_body_that_does_not_say_how_long_it_is_has_the_same_limit(assistant: RunningAssistant) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", assistant.port)
    connection.request("POST", "/v1/chat/completions", iter([b"x" * 3000] * 2), encode_chunked=True)
    assert connection.getresponse().status == 413


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/v1/completions", 405)])
def test_a_wrong_path_is_told(assistant: RunningAssistant, method: str, path: str, status: int) -> None:
    reply = assistant.ask(method, path)
    assert (reply.status, reply.error["code"]) == (status, "no_route")


@pytest.mark.parametrize("most", [0, 1])
def test_a_harness_that_scores_prompts_is_told_that_it_cannot(assistant: RunningAssistant, most: int) -> None:
    with pytest.raises(openai.BadRequestError, match="log-probabilities of the prompt"):
        assistant.openai().completions.create(model="mock", prompt="hello", echo=True, logprobs=1, max_tokens=most)


def test_the_package_raises_its_own_errors(assistant: RunningAssistant) -> None:
    with pytest.raises(openai.NotFoundError):
        assistant.openai().chat.completions.create(model="gpt-9", messages=HELLO)
    with pytest.raises(openai.BadRequestError):
        assistant.openai().chat.completions.create(
            model="mock", messages=HELLO, response_format={"type": "json_object"}
        )


def test_a_key_is_asked_for() -> None:
    access = AccessSettings(api_keys=("first", "second"))
    with (
        InProcessVerifier(MockEngine()) as verifier,
        RunningAssistant(EdgeClient(verifier.address), AssistantSettings(access)) as assistant,
    ):
        assert assistant.openai(api_key="second").models.list().data[0].id == "mock"
        with pytest.raises(openai.AuthenticationError):
            assistant.openai(api_key="third").models.list()
        bare = assistant.ask("GET", "/v1/models")
        assert (bare.status, bare.headers["www-authenticate"]) == (401, "Bearer")
        assert assistant.ask("GET", "/metrics").status == 401
        assert assistant.ask("GET", "/health").status == 200
        assert assistant.ask("GET", "/ready").status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:8080"}, 200),
        ({"Host": "[::1]:8080"}, 200),
        ({"Host": "localhost.:8080"}, 200),
        ({"Host": "app.localhost:8080"}, 200),
        ({"Host": "127.0.0.2:8080"}, 200),
        ({"Host": "mine.example"}, 200),
        ({"Host": "MINE.example.:8080"}, 200),
        ({"Host": "elsewhere.example"}, 403),
        ({"Host": "localhost.elsewhere.example:8080"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "[::1"}, 403),
        ({"Origin": ELSEWHERE}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://allowed.example"}, 200),
        ({"Host": "localhost:8080", "Origin": "http://localhost:8080"}, 200),
        ({"Host": "localhost:8080", "Origin": "http://["}, 403),
        ({"Host": "localhost:8080", "Origin": "http://[::1"}, 403),
        ({"Host": "localhost:8080", "Origin": "http://[v1.x]:8080"}, 403),
        ({"Host": "localhost:8080", "Origin": "http://a\xbdb"}, 403),
        ({"Host": "localhost:8080", "Origin": ""}, 403),
        ({"Host": "[::1", "Origin": "http://[::1"}, 403),
    ],
)
def test_pages_from_elsewhere_are_kept_out(headers: dict[str, str], status: int) -> None:
    access = AccessSettings(
        hosts=allowed_hosts("127.0.0.1", ["Mine.example."], has_keys=False), origins=("https://allowed.example",)
    )
    with (
        InProcessVerifier(MockEngine()) as verifier,
        RunningAssistant(EdgeClient(verifier.address), AssistantSettings(access)) as assistant,
    ):
        assert assistant.ask("GET", "/v1/models", **headers).status == status


@pytest.mark.parametrize(
    ("listens_on", "more", "has_keys", "host", "serves"),
    [
        ("0.0.0.0", (), False, "rebound.example", False),
        ("0.0.0.0", (), False, "192.168.1.5", True),
        ("0.0.0.0", (), False, socket.gethostname().lower(), True),
        ("0.0.0.0", ("mine.example",), False, "mine.example", True),
        ("0.0.0.0", ("mine.example",), True, "mine.example", True),
        ("0.0.0.0", ("mine.example",), True, "rebound.example", False),
        ("0.0.0.0", (), True, "outrider", True),  # a container's name; a page has no key
        ("192.168.1.5", (), False, "rebound.example", False),
        ("jetson.lan", (), False, "jetson.lan", True),
        ("127.0.0.1", (), True, "rebound.example", False),
        ("::1", (), False, "rebound.example", False),
        ("127.0.0.1", (), False, "", False),
    ],
)
def test_names_are_checked_wherever_the_server_listens(
    listens_on: str, more: tuple[str, ...], has_keys: bool, host: str, serves: bool
) -> None:
    assert AccessSettings(hosts=allowed_hosts(listens_on, more, has_keys=has_keys)).serves(host) is serves


def test_openais_javascript_package_gets_its_preflight() -> None:
    access = AccessSettings(origins=("https://allowed.example",))
    names = "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-retry-count,x-stainless-timeout"
    with RunningAssistant(EdgeClient("127.0.0.1:1"), AssistantSettings(access)) as assistant:
        asking = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": names}
        preflight = assistant.ask("OPTIONS", "/v1/chat/completions", Origin="https://allowed.example", **asking)
        assert preflight.status == 200
        allowed = {name.strip() for name in preflight.headers["access-control-allow-headers"].lower().split(",")}
        assert allowed >= set(names.split(","))
        refused = assistant.ask("OPTIONS", "/v1/chat/completions", Origin=ELSEWHERE, **asking)
        assert "access-control-allow-origin" not in refused.headers


def test_an_allowed_page_may_read_the_answer() -> None:
    access = AccessSettings(origins=("https://allowed.example",))
    with (
        InProcessVerifier(MockEngine()) as verifier,
        RunningAssistant(EdgeClient(verifier.address), AssistantSettings(access)) as assistant,
    ):
        asking = {"Origin": "https://allowed.example", "Access_Control_Request_Method": "POST"}
        preflight = assistant.ask("OPTIONS", "/v1/chat/completions", **asking)
        assert preflight.headers["access-control-allow-origin"] == "https://allowed.example"
        reply = assistant.chat(Origin="https://allowed.example")
        assert reply.headers["access-control-allow-origin"] == "https://allowed.example"
        assert "access-control-allow-origin" not in assistant.chat(Origin=ELSEWHERE).headers


def test_a_full_assistant_says_when_to_come_again() -> None:
    engine = GatedEngine()
    with (
        InProcessVerifier(engine) as verifier,
        RunningAssistant(EdgeClient(verifier.address), AssistantSettings(max_requests=1)) as assistant,
    ):
        body = json.dumps(question(stream=True)).encode()
        engine.allow(1)
        first = assistant.send("POST", "/v1/chat/completions", body)
        first.readline()
        second = assistant.chat()
        assert (second.status, second.error["type"]) == (429, "rate_limit_error")
        assert int(second.headers["retry-after"]) >= 1
        engine.allow(10_000)
        first.read()
        until(lambda: assistant.chat().status == 200, "there is a place again")


def test_a_full_verifier_says_when_to_come_again() -> None:
    engine = GatedEngine(max_sequences=1)
    no_queue = ServiceSettings(admission=AdmissionSettings(max_queue=0))
    with (
        InProcessVerifier(engine, service=no_queue) as verifier,
        RunningAssistant(EdgeClient(verifier.address, link=LinkSettings(place_timeout_s=0.0))) as assistant,
    ):
        body = json.dumps(question(stream=True)).encode()
        engine.allow(1)
        first = assistant.send("POST", "/v1/chat/completions", body)
        first.readline()
        second = assistant.chat()
        assert (second.status, second.error["code"]) == (429, "sessions")
        assert second.headers["retry-after"] == "1"
        engine.allow(10_000)
        first.read()


def test_a_verifier_that_is_not_there_is_told() -> None:
    client = EdgeClient("127.0.0.1:1", link=LinkSettings(connect_timeout_s=0.2))
    with RunningAssistant(client, AssistantSettings(model_info_timeout_s=0.3)) as assistant:
        reply = assistant.chat()
        assert (reply.status, reply.error["type"], reply.error["code"]) == (503, "server_error", "unreachable")
        assert "cannot be reached" in reply.error["message"]
        assert reply.headers["retry-after"] == "1"
        assert assistant.ask("GET", "/ready").status == 503
        assert "127.0.0.1:1" in assistant.ask("GET", "/ready").error["message"]
        status = assistant.ask("GET", "/status")
        assert (status.status, status.json["verifier"], status.json["drafter"]) == (200, "unreachable", False)
        assert "cannot be reached" in status.json["reason"]
        assert assistant.ask("GET", "/health").status == 200


def test_why_the_verifier_does_not_answer_is_for_those_with_a_key() -> None:
    client = EdgeClient("127.0.0.1:1", link=LinkSettings(connect_timeout_s=0.2))
    settings = AssistantSettings(AccessSettings(api_keys=("key",)), model_info_timeout_s=0.3)
    with RunningAssistant(client, settings) as assistant:
        assert assistant.ask("GET", "/status").json == {
            "verifier": "unreachable",
            "drafter": False,
            "offline_answers": "never",
            "trusted": False,
        }
        ready = assistant.ask("GET", "/ready")
        assert (ready.status, ready.error["code"], ready.headers["retry-after"]) == (503, "unreachable", "1")
        assert "127.0.0.1" not in ready.error["message"]
        assert "127.0.0.1:1" in assistant.ask("GET", "/status", Authorization="Bearer key").json["reason"]
        assert "127.0.0.1:1" in assistant.ask("GET", "/ready", Authorization="Bearer key").error["message"]


def test_a_verifier_that_refuses_this_device_is_not_called_unreachable(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    keys.add("another", {})
    with (
        InProcessVerifier(MockEngine(), authentication=Authentication(KeyStore(keys.path))) as verifier,
        RunningAssistant(EdgeClient(verifier.address)) as assistant,
    ):
        status = assistant.ask("GET", "/status")
        assert (status.status, status.json["verifier"]) == (200, "refused")
        assert "API key" in status.json["reason"]


class CountingClient(EdgeClient):
    """Counts how often the verifier is asked what it serves."""

    asked = 0

    def models(self, timeout_s: float = 10.0) -> Sequence[pb.GetModelInfoResponse]:
        self.asked += 1
        return super().models(timeout_s)


def test_one_question_serves_all_who_ask_within_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "SHARED_S", 1e9)  # a second, on a machine of any speed

    async def ask(client: CountingClient, good: bool) -> None:
        verifier = upstream.Upstream(AsyncEdgeClient(client), 5.0 if good else 0.3)
        hasty = asyncio.create_task(verifier.models())
        others = [asyncio.create_task(verifier.models()) for _ in range(50)]
        await asyncio.sleep(0)
        hasty.cancel()
        for _ in range(2):
            told = await asyncio.gather(*others, verifier.models(), return_exceptions=True)
            assert all(isinstance(one, SessionError) is not good for one in told)
        assert client.asked == 1
        monkeypatch.setattr(upstream, "SHARED_S", 0.0)
        await asyncio.gather(verifier.models(), return_exceptions=True)
        assert client.asked == 2

    with InProcessVerifier(MockEngine()) as verifier, CountingClient(verifier.address) as client:
        asyncio.run(ask(client, good=True))
    monkeypatch.setattr(upstream, "SHARED_S", 1e9)
    with CountingClient("127.0.0.1:1", link=LinkSettings(connect_timeout_s=0.2)) as client:
        asyncio.run(ask(client, good=False))
