"""Bytes on the port: HTTP/2 as no library would write it, and what is no HTTP/2 at all."""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct

from benchmarks.fuzz.mutations import mangle

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CONTINUATION = 9
ANSWER_S = 0.02  # how long to listen to what comes back
# Headers of a call, as HPACK literals without indexing.
HEADERS = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/outrider.v1.VerifierService/Generate"),
           (b":authority", b"x"), (b"content-type", b"application/grpc"), (b"te", b"trailers"))  # fmt: skip


def connection(rng: random.Random) -> bytes:
    """All that one connection says."""
    if rng.random() < 0.1:
        return rng.choice((rng.randbytes(rng.randint(1, 4096)), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", PREFACE[:9]))
    said = PREFACE + frame(4, 0, 0, b"")  # settings
    for _ in range(rng.randint(1, 30)):
        said += rng.choice((call, random_frame, random_frame))(rng)
    return mangle(said, rng) if rng.random() < 0.3 else said


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def call(rng: random.Random) -> bytes:
    """A call as it should be, but for its message and perhaps its headers."""
    headers = b"".join(
        b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value
        for name, value in HEADERS
        if rng.random() < 0.97
    )
    message = rng.randbytes(rng.randint(0, 64))
    length = len(message) if rng.random() < 0.7 else rng.choice((0, 1, 2**20, 2**20 + 1, 2**32 - 1))
    stream = rng.randrange(1, 60, 2)
    return frame(1, 4, stream, headers) + frame(0, rng.randrange(2), stream, struct.pack(">BI", 0, length) + message)


def random_frame(rng: random.Random) -> bytes:
    """Any kind of frame, known or not, with anything in it."""
    payload = rng.randbytes(rng.choice((0, 4, 5, 6, 8, 9, rng.randint(0, 300))))
    stream = rng.choice((0, 1, 3, 5, 2, 2**31 - 1, 2**32 - 1))
    return frame(rng.randrange(CONTINUATION + 3), rng.choice((0, 1, 4, 5, 0x20, 255)), stream, payload)


async def say(port: int, said: bytes) -> None:
    """Connect, say it, listen for a moment, and hang up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError, TimeoutError):
        writer.write(said)
        await writer.drain()
        async with asyncio.timeout(ANSWER_S):
            while await reader.read(65536):
                pass
    writer.transport.abort()
