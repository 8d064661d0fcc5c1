"""The assistant inside the test process: real HTTP on a real socket, its event loop on a thread of its own."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from concurrent.futures import Future
from typing import Any, NamedTuple, Self

import uvicorn
from openai import AsyncOpenAI, OpenAI

from edge_client.assistant.app import Assistant, AssistantSettings
from edge_client.assistant.serving import listen
from edge_client.client import AsyncEdgeClient, EdgeClient
from tests.service.raw import DEADLINE_S


class Reply(NamedTuple):
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]


class RunningAssistant:
    """Context manager; closes the client at its end."""

    def __init__(self, client: EdgeClient, settings: AssistantSettings | None = None) -> None:
        (self._listening,) = listen("127.0.0.1", 0)
        self.port = self._listening.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        app = Assistant(AsyncEdgeClient(client), settings or AssistantSettings()).app()
        self._server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready: Future[None] = Future()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        serving = asyncio.create_task(self._server.serve([self._listening]))
        while not (self._server.started or serving.done()):
            await asyncio.sleep(0.005)
        self._ready.set_result(None)
        await serving

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.result(DEADLINE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        self._listening.close()

    @property
    def url(self) -> str:
        return f"http://{self.host}/v1"

    def openai(self, **settings: Any) -> OpenAI:
        return OpenAI(**self._openai_settings(settings))

    def async_openai(self, **settings: Any) -> AsyncOpenAI:
        return AsyncOpenAI(**self._openai_settings(settings))

    def _openai_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        return {"base_url": self.url, "api_key": "none", "max_retries": 0, "timeout": DEADLINE_S} | settings

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> http.client.HTTPResponse:
        """A request as it is; underscores in header names become hyphens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        return connection.getresponse()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """A request with its whole answer; a body that is not bytes goes as JSON."""
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        response = self.send(method, path, raw, **headers)
        whole = response.read()
        return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, whole)

    def chat(self, body: dict[str, Any] | None = None, **headers: str) -> Reply:
        """A chat request, right but for the given fields."""
        return self.ask("POST", "/v1/chat/completions", question(**(body or {})), **headers)


def question(**fields: Any) -> dict[str, Any]:
    """A chat request's body for the mock target."""
    return {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 24, "seed": 9, "temperature": 0} | fields


def events(response: http.client.HTTPResponse) -> list[Any]:
    """A stream's events to its end, which must be [DONE]; comments are left out."""
    lines = [line for line in response.read().decode().split("\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
