"""Log records as lines of text or of JSON, each with the call that it belongs to, and one for every call that ended.

Records carry counts, times and names; never a prompt, an answer or a token id.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Any, TextIO

from cloud_verifier.observability.interceptor import TRACEPARENT, Call, current_call

access = logging.getLogger("cloud_verifier.access")
QUIET = ("/grpc.health.v1.", "/grpc.reflection.")  # asked every few seconds


def configure(kind: str, level: str, stream: TextIO | None = None) -> None:
    """Send the records of this process to standard error. kind: text or json."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if kind == "json" else TextLines())
    handler.addFilter(_add_call)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class TextLines(logging.Formatter):
    """Time, level, logger, message, and the rest as key=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - named by logging
        return " ".join([super().formatMessage(record), *(f"{key}={value}" for key, value in _fields(record).items())])


class JsonLines(logging.Formatter):
    """One object per line."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class AccessLog:
    """One record for every call, once it is over."""

    def committed(self, call: Call, tokens: int, gap_s: float) -> None:
        """Nothing: the sum comes at the end."""

    def drafted(self, call: Call, tokens: int, turnaround_s: float | None) -> None:
        """Nothing either."""

    def ended(self, call: Call) -> None:
        fields: dict[str, Any] = {
            "method": call.method,
            "status": call.code,
            "reason": call.reason,
            "peer": call.peer,
            "principal": call.principal,
            "duration_ms": round((call.ended_s - call.started_s) * 1e3, 1),
        }
        if call.generates:
            fields |= {
                "model": call.model,
                "session": call.session,
                "resumed": call.resumed,
                "prompt_tokens": call.prompt_tokens,
                "tokens": call.tokens,
                "drafted_tokens": call.drafted,
            }
            if call.first_token_s:
                fields["first_token_ms"] = round((call.first_token_s - call.started_s) * 1e3, 1)
            if call.finished is not None:
                fields["cached_prompt_tokens"] = call.finished.usage.cached_prompt_tokens
                fields["accepted_tokens"] = call.finished.statistics.accepted_tokens
                fields["target_forwards"] = call.finished.statistics.target_forwards
        level = logging.DEBUG if call.method.startswith(QUIET) else logging.INFO
        access.log(level, "call", extra={"fields": {key: value for key, value in fields.items() if value != ""}})


def _add_call(record: logging.LogRecord) -> bool:
    call = current_call.get()
    if call is not None:
        trace = TRACEPARENT.fullmatch(call.traceparent)
        record.call = {"request_id": call.request_id} | (
            {"trace_id": trace["trace"], "parent_span_id": trace["span"]} if trace else {}
        )
    return True


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {**getattr(record, "call", {}), **getattr(record, "fields", {})}
