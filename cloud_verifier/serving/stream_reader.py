"""Reads from a call that are never given up half way.

gRPC's asyncio server loses a quarter of a kilobyte by every stream that ends while a task waits for its next message
and is cancelled (github.com/grpc/grpc/issues/43360; grpcio 1.85). That would be every answer. So nobody cancels a read:
one that nobody waits for any more ends by itself when its call does.
"""

from __future__ import annotations

import asyncio
from typing import Any

from grpc import StatusCode
from outrider.v1 import verifier_pb2 as pb

from cloud_verifier.errors import VerifierError, invalid

MAX_OPEN_BYTES = 1 << 20  # of an Open in pieces: as of one message
MIN_PIECE_BYTES = 4096  # but the last; smaller ones would let a device take its time for ever
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


async def read_open(context: Any, timeout_s: float) -> Any:
    """The first message; an Open that comes in pieces is put together, and each piece answered with an OpenProgress.

    timeout_s: for each message. Raises TimeoutError, after which the call must end, VerifierError for pieces that are
    none, and DecodeError.
    """
    data = bytearray()
    while True:
        message = await read_within(context, timeout_s)
        if not isinstance(message, pb.GenerateRequest) or message.WhichOneof("message") != "open_piece":
            if data:
                raise invalid("OPEN_PIECE", "an Open that was begun in pieces must be sent to its last piece first")
            return message
        piece = message.open_piece
        data += piece.data
        if len(data) > MAX_OPEN_BYTES:
            sentence = f"the Open has more than {MAX_OPEN_BYTES} bytes; shorten the prompt"
            raise VerifierError(StatusCode.RESOURCE_EXHAUSTED, "TOO_LARGE", sentence)
        if not piece.last and len(piece.data) < MIN_PIECE_BYTES:
            raise invalid(
                "OPEN_PIECE",
                f"a piece of an Open has {len(piece.data)} bytes; all but the last must have {MIN_PIECE_BYTES}",
            )
        await context.write(pb.GenerateResponse(open_progress=pb.OpenProgress(received_bytes=len(data))))
        if piece.last:
            opened = pb.Open.FromString(bytes(data))
            opened.incremental = True
            return pb.GenerateRequest(open=opened)
