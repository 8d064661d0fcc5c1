"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}` with the status that clients go by."""

from __future__ import annotations

import math
from typing import Any

from starlette.responses import JSONResponse

from edge_client.errors import SessionError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A refusal. The message is a sentence for people; code is a stable word for programs, param the field at fault."""

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after_s = status, code, param, retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        sentence = str(self).encode("utf-8", "replace").decode()  # it may quote half a character
        return {"error": {"message": sentence, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


def from_session(error: SessionError) -> ApiError:
    """What the verifier, or the way to it, did to an answer."""
    code = error.reason.lower() or error.code.lower()
    sentence, retry = str(error), error.retry_after_s
    match error.code, error.reason:
        case _, "CONTEXT_FULL":
            return ApiError(400, sentence, code="context_length_exceeded")
        case _, "TOO_LARGE":
            return ApiError(413, sentence, code="request_too_large")
        case "NOT_FOUND", "MODEL":
            return ApiError(404, sentence, code="model_not_found", param="model")
        case "INVALID_ARGUMENT", "PROMPT":  # understood, but the model's template or tokenizer will not have it
            return ApiError(422, sentence, code="prompt_refused")
        case (("INVALID_ARGUMENT" | "OUT_OF_RANGE"), _):
            return ApiError(400, sentence, code=code)
        case "RESOURCE_EXHAUSTED", _:
            return ApiError(429, sentence, code=code, retry_after_s=retry or 1.0)
        case (("UNAVAILABLE" | "DEADLINE_EXCEEDED" | "CANCELLED"), _):
            return ApiError(503, sentence, code=code, retry_after_s=retry or 1.0)
        case _:
            return ApiError(502, sentence, code=code)
