"""Reads from a call that are never given up half way.

gRPC's asyncio server loses a quarter of a kilobyte by every stream that ends while a task waits for its next message
and is cancelled (github.com/grpc/grpc/issues/43360; grpcio 1.85). That would be every answer. So nobody cancels a read:
one that nobody waits for any more ends by itself when its call does.
"""

from __future__ import annotations

import asyncio
from typing import Any

CALLS_END_WITHIN_S = 10.0  # but not that of a device which does not even read how it ended, as long as it is connected

_left: dict[asyncio.Task[Any], asyncio.TimerHandle] = {}


def leave(task: asyncio.Task[Any]) -> None:
    """Let a task end by itself that reads from a call which ends soon; whatever it brings is nobody's business.

    If the call does not end, the task is cancelled after all: it may hold a whole session.
    """
    _left[task] = asyncio.get_running_loop().call_later(CALLS_END_WITHIN_S, task.cancel)
    task.add_done_callback(_ended)


def _ended(task: asyncio.Task[Any]) -> None:
    _left.pop(task).cancel()
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
