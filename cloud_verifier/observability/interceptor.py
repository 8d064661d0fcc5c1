"""What passes through a call, seen from outside: the interceptor behind access log, metrics and traces.

It stands between gRPC and the service and sees every message in both directions, so neither the service nor the
scheduler knows that it is watched. It keeps counts and times, never text or tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from outrider.v1 import verifier_pb2 as pb

from cloud_verifier.log_redaction import log_failure
from cloud_verifier.security.principals import caller

log = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})(?P<span>[0-9a-f]{16})-[0-9a-f]{2}")


@dataclass
class Call:
    """One call, as far as it has come.

    Times are seconds of the monotonic clock; 0 if the moment has not come. started_ns: Unix time. code, reason: how it
    ended; reason is that of google.rpc.ErrorInfo. tokens: of the answer, written on this stream. drafted: received on
    it.
    """

    method: str
    request_id: str
    traceparent: str = ""
    peer: str = ""
    principal: str = ""
    model: str = ""
    session: str = ""
    kind: str = ""
    sampling: pb.SamplingParams | None = None
    resumed: bool = False
    prompt_tokens: int = 0
    tokens: int = 0
    drafted: int = 0
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    first_queue_s: float = 0.0
    started_s: float = field(default_factory=time.monotonic)
    started_ns: int = field(default_factory=time.time_ns)
    opened_s: float = 0.0
    first_token_s: float = 0.0
    last_commit_s: float = 0.0
    ended_s: float = 0.0
    code: str = "OK"
    reason: str = ""
    finished: pb.Finished | None = None

    @property
    def generates(self) -> bool:
        """Whether this is a session's stream."""
        return self.method.endswith("/Generate")


class Watcher(Protocol):
    """Told of what happens in calls, on the event loop. Must be quick. What it raises is logged, no more."""

    def committed(self, call: Call, tokens: int, gap_s: float) -> None:
        """A commit left. gap_s: since the one before on this stream, or since the call began."""

    def drafted(self, call: Call, tokens: int, turnaround_s: float | None) -> None:
        """A draft came. turnaround_s: since the commit that it is the first to know of, if it is."""

    def ended(self, call: Call) -> None:
        """The call is over."""


current_call: ContextVar[Call | None] = ContextVar("current_call", default=None)
"""The call being served, for log records."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Shows every call to the watchers, and gives it a request id, which its trailing metadata tell."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self._watchers = [_Guarded(watcher) for watcher in watchers]

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the method's handler."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        make = {
            (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream),
            (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream),
            (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary),
        }[handler.request_streaming, handler.response_streaming]
        watched = self._watched(make[1], handler_call_details.method)
        return make[0](watched, handler.request_deserializer, handler.response_serializer)

    def _watched(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        if inspect.isasyncgenfunction(method):

            async def generating(request: Any, context: Any) -> Any:
                with self._call(name, context) as call:
                    async for response in method(request, _WatchedContext(context, call, self._watchers)):
                        yield response

            return generating

        async def answering(request: Any, context: Any) -> Any:
            with self._call(name, context) as call:
                return await method(request, _WatchedContext(context, call, self._watchers))

        return answering

    @contextlib.contextmanager
    def _call(self, name: str, context: Any) -> Iterator[Call]:
        call = _call_of(name, context)
        current_call.set(call)
        context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
        try:
            yield call
        except asyncio.CancelledError:
            call.code = "CANCELLED"
            raise
        except grpc.aio.AbortError:
            raise  # noted by abort
        except Exception:
            call.code = "UNKNOWN"
            raise
        finally:
            call.ended_s, call.principal = time.monotonic(), caller.get().name
            for watcher in self._watchers:
                watcher.ended(call)


class _Guarded:
    """A watcher whose failure is logged, and is none of the call's."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def committed(self, call: Call, tokens: int, gap_s: float) -> None:
        self._tell(self._watcher.committed, call, tokens, gap_s)

    def drafted(self, call: Call, tokens: int, turnaround_s: float | None) -> None:
        self._tell(self._watcher.drafted, call, tokens, turnaround_s)

    def ended(self, call: Call) -> None:
        self._tell(self._watcher.ended, call)

    def _tell(self, what: Callable[..., None], *facts: Any) -> None:
        try:
            what(*facts)
        except Exception as error:
            log_failure(log, f"{type(self._watcher).__name__} failed over a call", error)


class _WatchedContext:
    """A servicer's context that notes what is read, written and aborted."""

    def __init__(self, context: Any, call: Call, watchers: Sequence[Watcher]) -> None:
        self._context, self._call, self._watchers = context, call, watchers
        self._known = 0  # log length that the latest commit brought, until a draft knows of it

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        message = await self._context.read()
        if isinstance(message, pb.GenerateRequest):
            self._note_request(message)
        return message

    async def write(self, message: Any) -> None:
        await self._context.write(message)
        if isinstance(message, pb.GenerateResponse):
            self._note_response(message)

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Sequence[tuple[str, Any]] = ()
    ) -> None:
        self._call.code, self._call.reason = code.name, _reason(trailing_metadata)
        await self._context.abort(code, details, (*trailing_metadata, (REQUEST_ID, self._call.request_id)))

    def _note_request(self, message: pb.GenerateRequest) -> None:
        call = self._call
        call.uplink_bytes += message.ByteSize()
        if message.HasField("draft"):
            draft = message.draft
            turnaround_s = None
            if self._known and draft.known_length >= self._known:
                turnaround_s, self._known = time.monotonic() - call.last_commit_s, 0
            call.drafted += len(draft.tokens)
            for watcher in self._watchers:
                watcher.drafted(call, len(draft.tokens), turnaround_s)
        elif message.HasField("open"):
            call.kind = "chat" if message.open.HasField("chat") else "text_completion"
            call.resumed = message.open.HasField("resume") or bool(message.open.continue_from)
            call.sampling = message.open.sampling

    def _note_response(self, message: pb.GenerateResponse) -> None:
        call = self._call
        call.downlink_bytes += message.ByteSize()
        if message.HasField("commit"):
            commit, now_s = message.commit, time.monotonic()
            gap_s = now_s - (call.last_commit_s or call.started_s)
            if not call.first_token_s:
                call.first_token_s, call.first_queue_s = now_s, commit.queue_us / 1e6
            call.tokens += len(commit.tokens)
            for watcher in self._watchers:
                watcher.committed(call, len(commit.tokens), gap_s)
            call.last_commit_s, self._known = now_s, commit.start + len(commit.tokens)
        elif message.HasField("opened"):
            opened = message.opened
            call.opened_s, call.session = time.monotonic(), opened.session_id[:8]
            call.model, call.prompt_tokens = opened.model_info.model, opened.prompt_length
        elif message.HasField("finished"):
            call.finished = message.finished


def _call_of(method: str, context: Any) -> Call:
    """With what the caller's metadata say, if it makes sense."""
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    request_id, traceparent = metadata.get(REQUEST_ID, ""), metadata.get("traceparent", "")
    return Call(
        method,
        request_id if SANE_REQUEST_ID.fullmatch(request_id) else secrets.token_hex(8),
        traceparent if TRACEPARENT.fullmatch(traceparent) else "",
        context.peer(),
    )


def _reason(metadata: Sequence[tuple[str, Any]]) -> str:
    info = error_details_pb2.ErrorInfo()
    for key, value in metadata:
        if key == "grpc-status-details-bin":
            with contextlib.suppress(DecodeError):
                for detail in status_pb2.Status.FromString(value).details:
                    if detail.Unpack(info):
                        return str(info.reason)
    return ""
