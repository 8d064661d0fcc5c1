"""Reads from a call that are never given up half way.

gRPC's asyncio server loses a quarter of a kilobyte by every stream that ends while a task waits for its next message
and is cancelled (github.com/grpc/grpc/issues/43360; grpcio 1.85). That would be every answer. So nobody cancels a read:
one that nobody waits for any more ends by itself when its call does.
"""

from __future__ import annotations

import asyncio
from typing import Any

_left: set[asyncio.Task[Any]] = set()


def leave(task: asyncio.Task[Any]) -> None:
    """Let a task end by itself that reads from a call which ends soon; whatever it brings is nobody's business."""
    _left.add(task)  # or else nobody but gRPC would hold it
    task.add_done_callback(_ended)


def _ended(task: asyncio.Task[Any]) -> None:
    _left.discard(task)
    if not task.cancelled():
        task.exception()  # or else asyncio complains that nobody has looked


async def read_within(context: Any, timeout_s: float) -> Any:
    """The next message. Raises TimeoutError if none comes in time, after which the call must end."""
    task = asyncio.ensure_future(context.read())
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
    finally:
        if not task.done():
            leave(task)
    if not done:
        raise TimeoutError
    return task.result()
