"""Server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE_S = 10.0  # proxies and phones drop connections that are silent for half a minute


def event(body: Any) -> bytes:
    """One event with a JSON body."""
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def comment(words: str) -> bytes:
    """A line that clients skip."""
    return f": {words}\n\n".encode()


class EventStream(StreamingResponse):
    """A stream of events. What it needs is given back when it ends, however it ends, even before it has begun."""

    def __init__(self, events: AsyncIterator[bytes], needs: AsyncExitStack, headers: Mapping[str, str]) -> None:
        # no-transform, X-Accel-Buffering: a proxy that compresses or collects would hold words back
        own = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=own | dict(headers), media_type="text/event-stream")
        self._needs = needs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._needs:
            await super().__call__(scope, receive, send)
