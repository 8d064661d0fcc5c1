"""What gRPC alone costs a verifier: the same messages, and nobody behind them.

A process that takes drafts without looking at them, and at even intervals writes a ready-made commit to every stream,
as after a step. Devices answer each commit with as many drafts as theirs did, at random moments of the interval.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import grpc
from outrider.v1 import verifier_pb2 as pb
from outrider.v1 import verifier_pb2_grpc as pb_grpc

from benchmarks.load.measured import MeasuredVerifier, answers
from benchmarks.load.wire import SEATS_PER_CONNECTION, write
from cloud_verifier.server import SERVICE_NAME

WARM_S = 1.0


@dataclass(frozen=True)
class BareReading:
    """cpu_s: of the process. commits: written."""

    cpu_s: float
    commits: int


@dataclass(frozen=True)
class Traffic:
    """Every interval_s a commit of so many tokens per stream, answered by drafts_per_commit drafts of four."""

    streams: int
    interval_s: float
    tokens_per_commit: int
    drafts_per_commit: float


async def cpu_ms_per_commit(traffic: Traffic, seconds: float) -> float:
    """Processor time of the bare process over the commits it writes."""
    with MeasuredVerifier[Traffic, BareReading](_run, traffic) as service:
        return await _drive(service, traffic, seconds)


async def _drive(service: MeasuredVerifier[Traffic, BareReading], traffic: Traffic, seconds: float) -> float:
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [
        grpc.aio.insecure_channel(service.address, options)
        for _ in range((traffic.streams - 1) // SEATS_PER_CONNECTION + 1)
    ]
    devices = [
        asyncio.create_task(_device(channels[index % len(channels)], traffic, random.Random(index)))
        for index in range(traffic.streams)
    ]
    try:
        await asyncio.sleep(WARM_S)
        before = service.read()
        await asyncio.sleep(seconds)
        after = service.read()
    finally:
        for device in devices:
            device.cancel()
        await asyncio.gather(*devices, return_exceptions=True)
        for channel in channels:
            await channel.close()
    return (after.cpu_s - before.cpu_s) * 1e3 / (after.commits - before.commits)


async def _device(channel: grpc.aio.Channel, traffic: Traffic, rng: random.Random) -> None:
    stub: Any = pb_grpc.VerifierServiceStub(channel)
    call = stub.Generate()
    await call.wait_for_connection()
    draft = pb.Draft(start=200, tokens=(1, 20, 300, 4000), known_length=198, sent_at_us=10**10, confidence=b"abcd")
    message = pb.GenerateRequest(draft=draft)
    await write(call, message)
    owed = 0.0
    while await call.read() is not grpc.aio.EOF:
        owed += traffic.drafts_per_commit
        moments_s = sorted(rng.uniform(0, traffic.interval_s) for _ in range(int(owed)))
        owed -= len(moments_s)
        for earlier_s, moment_s in zip([0.0, *moments_s], moments_s, strict=False):
            await asyncio.sleep(moment_s - earlier_s)
            await write(call, message)


def _run(traffic: Traffic, pipe: Connection) -> None:
    asyncio.run(_serve(traffic, pipe))


async def _serve(traffic: Traffic, pipe: Connection) -> None:
    contexts: set[Any] = set()
    commits = 0

    async def generate(_requests: Any, context: Any) -> None:
        contexts.add(context)
        try:
            while await context.read() is not grpc.aio.EOF:
                pass
        finally:
            contexts.discard(context)

    server = grpc.aio.server()
    method = grpc.stream_stream_rpc_method_handler(
        generate, pb.GenerateRequest.FromString, pb.GenerateResponse.SerializeToString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, {"Generate": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    tokens = range(1000, 1000 + traffic.tokens_per_commit)
    commit = pb.Commit(
        start=200,
        tokens=tokens,
        text="word " * traffic.tokens_per_commit,
        text_lengths=[5] * traffic.tokens_per_commit,
        echo_sent_at_us=10**10,
        hold_us=20_000,
        queue_us=1_000,
        forward_us=60_000,
        batch_size=traffic.streams,
        draft_budget=16,
    )

    async def steps() -> None:
        nonlocal commits
        while True:
            await asyncio.sleep(traffic.interval_s)
            writes = [context.write(pb.GenerateResponse(commit=commit)) for context in contexts]
            await asyncio.gather(*writes, return_exceptions=True)  # some devices leave
            commits += len(writes)

    stepping = asyncio.create_task(steps())
    await answers(pipe, port, lambda: BareReading(time.process_time(), commits))
    stepping.cancel()
    await server.stop(0)
