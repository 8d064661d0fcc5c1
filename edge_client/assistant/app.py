"""The routes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outrider.v1 import verifier_pb2 as pb
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edge_client.assistant import page
from edge_client.assistant.access import AccessControl, AccessSettings, read_body
from edge_client.assistant.answer_events import AnswerEvents, echoed
from edge_client.assistant.choices import News, Patient, answers, in_order
from edge_client.assistant.disconnect import ClientGone, unless_gone
from edge_client.assistant.errors import ApiError, from_session
from edge_client.assistant.event_stream import DONE, KEEP_ALIVE_S, EventStream, comment, event
from edge_client.assistant.metrics import AssistantMetrics
from edge_client.assistant.offline import HEADER, OfflineAnswersGiven, consent, told
from edge_client.assistant.request_log import RequestLog
from edge_client.assistant.requests import (
    DEFAULT_MODEL,
    OFFLINE_SUFFIX,
    Body,
    ChatBody,
    CompletionBody,
    Question,
    parse,
)
from edge_client.assistant.responses import ChatShape, CompletionShape, Shape
from edge_client.assistant.upstream import Upstream
from edge_client.client import AsyncEdgeClient
from edge_client.errors import SessionError
from edge_client.riding.offline import UNREACHABLE
from edge_client.riding.vocabulary_cache import VocabularyError
from edge_client.types import OfflineAnswers, RequestOutput


@dataclass(frozen=True)
class AssistantSettings:
    """access: who may ask. max_requests: answered at a time. keep_alive_s: silence on a stream before a comment.
    page: folder of the page's files. offline: whether the device may finish answers alone; ask: those that say so."""

    access: AccessSettings = field(default_factory=AccessSettings)
    max_requests: int = 64
    keep_alive_s: float = KEEP_ALIVE_S
    page: Path = page.FOLDER
    offline: OfflineAnswers = OfflineAnswers.NEVER
    model_info_timeout_s: float = 3.0  # chat apps wait ten seconds for a list of models


WITHOUT_KEY = {  # what anybody may know of the way to the verifier
    "unreachable": "the verifier cannot be reached; send this server's API key to be told more",
    "refused": "the verifier refuses this device; send this server's API key to be told more",
}


class Assistant:
    """What the routes share: one client, with one channel and one drafter."""

    def __init__(self, client: AsyncEdgeClient, settings: AssistantSettings) -> None:
        self._client, self._settings = client, settings
        self._upstream = Upstream(client, settings.model_info_timeout_s)
        self._gauges = AssistantMetrics()
        self._offline_answers = OfflineAnswersGiven()
        self._running = 0

    def app(self) -> Starlette:
        """The ASGI application."""
        access = self._settings.access
        cors = Middleware(
            CORSMiddleware,
            allow_origins=access.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's JavaScript package sends a dozen of its own, x-stainless-*
            expose_headers=["X-Request-Id", "Retry-After", HEADER],
            allow_private_network=True,  # an origin that was let in may be anywhere, this server is not
        )
        return Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._model),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route("/v1/outrider/check", self._check, methods=["POST"]),
                Route("/health", self._health),
                Route("/ready", self._ready),
                Route("/status", self._status),
                Route("/metrics", self._metrics),
                Route("/version", self._version),
                *page.routes(self._settings.page),
            ],
            middleware=[
                Middleware(RequestLog),
                *([cors] if access.origins else []),
                Middleware(AccessControl, access=access),
            ],
            exception_handlers={
                ApiError: self._refuse,
                HTTPException: self._refuse,
                ClientGone: _nobody,
                Exception: self._fault,
            },
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        async with self._client:
            yield

    # -- answers -----------------------------------------------------------------------------------------------------

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, ChatBody, ChatShape)

    async def _completions(self, request: Request) -> Response:
        return await self._answer(request, CompletionBody, CompletionShape)

    async def _answer(self, request: Request, kind: type[Body], shape_kind: type[Shape]) -> Response:
        question = parse(kind, _json(await read_body(request, self._settings.access.max_bytes)))
        needs = AsyncExitStack()
        try:
            needs.enter_context(self._place())
            offline = consent(question, self._settings.offline)
            shape = shape_kind(question.model or self._upstream.default_name, question.include_usage, question.notices)
            news = await needs.enter_async_context(aclosing(self._news(question, shape, offline)))
            if question.stream:
                patient = await needs.enter_async_context(aclosing(Patient(news, self._settings.keep_alive_s)))
                first = await unless_gone(request, _beginning(question, patient))
                headers = {HEADER: "true"} if first is not None and first.chunk.offline else {}
                return EventStream(self._events(question, shape, first, patient), needs.pop_all(), headers)
            whole = await unless_gone(request, self._whole(question, shape, news))
            return JSONResponse(whole, headers={HEADER: "true"} if shape.offline else {})
        except (SessionError, ValueError) as error:
            raise _refusal(error) from error
        finally:
            await needs.aclose()

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        if self._running >= self._settings.max_requests:
            raise ApiError(
                429,
                f"{self._running} requests are being answered, and no more are taken at a time; try again soon",
                code="too_many_requests",
                retry_after_s=1.0,
            )
        self._running += 1
        try:
            with self._gauges.running():
                yield
        finally:
            self._running -= 1

    async def _news(self, question: Question, shape: Shape, offline: OfflineAnswers) -> AsyncGenerator[News, None]:
        """The news of all choices; the shape tells of the model that brings them. Raises as `answers`, `spelling`."""
        async with aclosing(answers(self._client, question, offline)) as news:
            async for one in news:
                if (info := one.chunk.model_info) is not None:
                    if question.params.logprobs is not None:
                        shape.spelling = await self._upstream.spelling(info)
                    shape.model, shape.fingerprint = info.model, info.target_fingerprint
                yield one

    async def _whole(self, question: Question, shape: Shape, news: AsyncIterator[News]) -> Any:
        outputs: dict[int, RequestOutput] = {}
        async for one in news:
            if one.chunk.output is not None:
                outputs[one.choice] = one.chunk.output
                self._answered(question, shape, one.choice, one.chunk.output)
        choices = [shape.choice(choice, outputs[choice], echoed(question, choice)) for choice in sorted(outputs)]
        return shape.whole(choices, in_order(outputs), question.n)

    async def _events(
        self, question: Question, shape: Shape, first: News | None, patient: Patient[News]
    ) -> AsyncGenerator[bytes, None]:
        telling = AnswerEvents(question, shape)
        news = first
        try:
            while True:
                if news is None:
                    yield comment("keep-alive")
                elif told := telling.of(news):
                    yield told
                if news is not None and news.chunk.output is not None:
                    self._answered(question, shape, news.choice, news.chunk.output)
                news = await patient.next()
        except StopAsyncIteration:
            yield telling.end()
        except (SessionError, ValueError) as error:
            refusal = _refusal(error)
            self._gauges.failed(refusal.status)
            yield event(refusal.body) + DONE

    def _answered(self, question: Question, shape: Shape, choice: int, output: RequestOutput) -> None:
        self._gauges.answered(output)
        self._offline_answers.remember(shape.id, question, choice, output)

    async def _check(self, request: Request) -> Response:
        """Have the verifier check what the device wrote alone."""
        body = await read_body(request, self._settings.access.max_bytes)
        question, choice, output = self._offline_answers.find(_json(body))
        prompt = question.prompts[choice // question.n]
        try:
            with self._place():
                checked = await unless_gone(
                    request, self._client.check(prompt, output, question.params, model=question.model)
                )
        except (SessionError, ValueError) as error:
            raise _refusal(error) from error
        return JSONResponse(told(checked, output))

    # -- the rest ----------------------------------------------------------------------------------------------------

    async def _models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": await self._listed()})

    async def _model(self, request: Request) -> Response:
        name, models = request.path_params["name"], await self._listed()
        for model in models:
            if model["id"] == name:
                return JSONResponse(model)
        served = ", ".join(repr(model["id"]) for model in models)
        raise ApiError(404, f"model {name[:200]!r} is not served; {served} can be asked for", code="model_not_found")

    async def _listed(self) -> list[dict[str, Any]]:
        """What may be asked for. Raises ApiError."""
        try:
            return [_entry(info) for info in await self._upstream.models()]
        except SessionError as error:
            if not self._alone_after(error, OfflineAnswers.ASK):
                raise _refusal(error) from error
        known = self._upstream.known or [pb.GetModelInfoResponse(model=DEFAULT_MODEL)]
        # Who is only answered alone for saying so must find a name that says so.
        suffix = OFFLINE_SUFFIX if self._settings.offline is OfflineAnswers.ASK else ""
        return [_entry(info) | {"id": info.model + suffix} for info in known]

    def _alone_after(self, error: SessionError, *more: OfflineAnswers) -> bool:
        """Whether this device answers alone now, unasked or by one more setting."""
        may = self._settings.offline in (OfflineAnswers.AUTO, *more) and self._client.can_answer_alone
        return may and error.code in UNREACHABLE

    async def _health(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _ready(self, request: Request) -> Response:
        try:
            (info, *_) = await self._upstream.models()
        except SessionError as error:
            if self._alone_after(error):
                name = self._upstream.default_name + OFFLINE_SUFFIX
                return JSONResponse({"status": "ready", "model": name, "drafter": True})
            refusal = _refusal(error)
            if self._settings.access.trusts(request.headers):
                raise refusal from error
            sentence = WITHOUT_KEY[_state(error)]
            raise ApiError(refusal.status, sentence, code=refusal.code, retry_after_s=refusal.retry_after_s) from error
        return JSONResponse({"status": "ready", "model": info.model, "drafter": self._client.has_drafter})

    async def _status(self, request: Request) -> Response:
        """As `_ready`, but that nobody can be reached is an answer, too: a browser logs every 503 as a fault."""
        trusted = self._settings.access.trusts(request.headers)
        alone = self._settings.offline if self._client.can_answer_alone else OfflineAnswers.NEVER
        told: dict[str, Any] = {
            "drafter": self._client.has_drafter,
            "offline_answers": alone.value,
            "trusted": trusted,  # with the key that was sent, or because none is asked for
        }
        try:
            (info, *_) = await self._upstream.models()
        except SessionError as error:
            reason = {"reason": str(error)} if trusted else {}
            return JSONResponse(told | {"verifier": _state(error)} | reason)
        return JSONResponse(told | {"verifier": "reachable", "model": info.model})

    async def _metrics(self, _request: Request) -> Response:
        return Response(self._gauges.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _version(self, _request: Request) -> Response:
        return JSONResponse({"version": importlib.metadata.version("outrider")})

    async def _refuse(self, _request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            words = {404: "there is nothing at this path", 405: "this path does not take this method"}
            sentence = words.get(error.status_code, str(error.detail))
            error = ApiError(error.status_code, f"{sentence}; see /v1/models, /v1/chat/completions", code="no_route")
        assert isinstance(error, ApiError)
        self._gauges.failed(error.status)
        return error.response()

    async def _fault(self, _request: Request, _error: Exception) -> Response:
        self._gauges.failed(500)  # Starlette raises it again after this, so that it is logged
        return ApiError(
            500, "the assistant made a mistake with this request; its log says which", code="fault"
        ).response()


async def _beginning(question: Question, patient: Patient[News]) -> News | None:
    """The first news worth a stream: a refusal keeps its status. A ride tells of a slow link at once."""
    while True:
        news = await patient.next()
        if news is None or news.view is not None or news.chunk.token_ids or news.chunk.output is not None:
            return news


def _state(error: SessionError) -> str:
    return "unreachable" if error.code in UNREACHABLE else "refused"


def _json(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is no JSON: {error}", code="invalid_json") from error


def _refusal(error: SessionError | ValueError) -> ApiError:
    if isinstance(error, SessionError):
        return from_session(error)
    if isinstance(error, VocabularyError):
        return ApiError(502, f"the verifier's vocabulary cannot be used: {error}", code="vocabulary")
    if isinstance(error, UnicodeEncodeError):
        return ApiError(400, "a text has half a character (a lone surrogate); send whole ones", code="invalid_value")
    return ApiError(400, str(error), code="invalid_value")


def _entry(info: pb.GetModelInfoResponse) -> dict[str, Any]:
    """A model as OpenAI lists it; max_model_len as vLLM does."""
    head = {"id": info.model, "object": "model", "created": 0, "owned_by": "outrider"}
    told = {"max_model_len": info.context_limit, "fingerprint": info.target_fingerprint}
    return head | (told if info.context_limit else {})  # nobody has told yet


async def _nobody(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; nginx' number for the logs
