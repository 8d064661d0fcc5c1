"""Preemption on a real clock and real sockets.

The seats' simulated world runs beside the event loop, moment for moment: what is due there is done when the clock says
so, and what comes in from a socket happens at the present moment. Its milliseconds may be longer than real ones
(`slow_motion`); what crosses between the two worlds is converted here and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
from outrider.v1 import verifier_pb2 as pb
from outrider.v1 import verifier_pb2_grpc as pb_grpc
from simpy import Environment

from benchmarks.load.answers import Job
from benchmarks.load.seat import Port
from netlab.simulator.messages import Commit, Draft
from speculation.pace.base import PATIENCE_UNLIMITED_MS, Objective, Pace

SEATS_PER_CONNECTION = 25
FAREWELL_S = 10.0
OBJECTIVES = {
    Objective.LATENCY: pb.OBJECTIVE_LATENCY,
    Objective.BALANCED: pb.OBJECTIVE_BALANCED,
    Objective.CAPACITY: pb.OBJECTIVE_CAPACITY,
}


class WallClock:
    """Runs a simulated world beside the event loop. late_ms: by how much its moments came too late, in its own time."""

    def __init__(self, slow_motion: float) -> None:
        self.env = Environment()
        self.slow_motion = slow_motion
        self.late_ms: list[float] = []
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._began_s = time.perf_counter()
        self._timer: asyncio.TimerHandle | None = None

    def now_ms(self) -> float:
        """Of the simulated world."""
        return (time.perf_counter() - self._began_s) * 1e3 / self.slow_motion

    def happen(self, action: Callable[[], object]) -> None:
        """Let something happen there now."""
        if self.failed.done():
            return
        try:
            self._catch_up()
            action()
        except Exception as error:
            self.failed.set_exception(error)
            return
        self._arm()

    def _catch_up(self) -> None:
        env, now_ms = self.env, self.now_ms()
        if env.peek() <= now_ms:
            self.late_ms.append(now_ms - env.peek())
        if now_ms > env.now:
            env.run(now_ms)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay_s = (self.env.peek() - self.now_ms()) * self.slow_motion / 1e3
        if delay_s != float("inf"):
            self._timer = self._loop.call_later(max(0.0, delay_s), self.happen, lambda: None)

    def stop(self) -> None:
        """Nothing happens any more."""
        if not self.failed.done():
            self.failed.set_result(None)
        if self._timer is not None:
            self._timer.cancel()


class WirePort(Port):
    """Sessions of a real verifier, until it is closed. drafts: messages sent."""

    def __init__(self, clock: WallClock, address: str, seats: int) -> None:
        self._clock = clock
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [
            grpc.aio.insecure_channel(address, options) for _ in range((seats - 1) // SEATS_PER_CONNECTION + 1)
        ]
        self._stubs = [pb_grpc.VerifierServiceStub(channel) for channel in self._channels]
        self._streams: dict[asyncio.Task[None], asyncio.Queue[pb.GenerateRequest]] = {}
        self._opened = 0
        self._closing = False
        self.drafts = 0

    def open(
        self, job: Job, pace: Pace, opened: Callable[[int], None], hear: Callable[[Commit], None]
    ) -> Callable[[Draft], None]:
        outbox: asyncio.Queue[pb.GenerateRequest] = asyncio.Queue()
        outbox.put_nowait(pb.GenerateRequest(open=self._opening(job, pace)))
        stub = self._stubs[self._opened % len(self._stubs)]
        self._opened += 1
        task = asyncio.create_task(
            self._stream(stub, outbox, len(job.written.prompt) + job.played.tokens, opened, hear)
        )
        self._streams[task] = outbox
        task.add_done_callback(self._ended)

        def take(draft: Draft) -> None:
            if not task.done():
                self.drafts += 1
                outbox.put_nowait(pb.GenerateRequest(draft=self._draft(draft)))

        return take

    def _opening(self, job: Job, pace: Pace) -> pb.Open:
        request = pb.Open(
            protocol_version=1,
            prompt_ids=pb.TokenIds(ids=job.written.prompt),
            objective=pb.Objective.Name(OBJECTIVES[pace.objective]),
            patience_ms=self._patience_ms(pace.patience_ms),
        )
        request.sampling.max_tokens = job.played.tokens
        request.sampling.ignore_eos = True
        return request

    def _patience_ms(self, asked_ms: int) -> int:
        return asked_ms if asked_ms == PATIENCE_UNLIMITED_MS else round(asked_ms * self._clock.slow_motion)

    def _draft(self, draft: Draft) -> pb.Draft:
        message = pb.Draft(
            start=draft.start,
            tokens=draft.tokens,
            known_length=draft.known_length,
            sent_at_us=round(draft.sent_at_ms * 1e3),
            confidence=bytes(round(confidence * 255) for confidence in draft.confidences),
        )
        if draft.patience_ms is not None:
            message.patience_ms = self._patience_ms(draft.patience_ms)
        return message

    async def _stream(
        self,
        stub: Any,
        outbox: asyncio.Queue[pb.GenerateRequest],
        length: int,
        opened: Callable[[int], None],
        hear: Callable[[Commit], None],
    ) -> None:
        clock, call = self._clock, stub.Generate()
        await call.wait_for_connection()
        sender = asyncio.create_task(_send(call, outbox))
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                kind = response.WhichOneof("message")
                if kind == "opened":
                    clock.happen(partial(opened, response.opened.max_lookahead))
                elif kind == "commit":
                    clock.happen(partial(hear, self._commit(response.commit, length)))
        finally:
            sender.cancel()
            call.cancel()

    def _commit(self, commit: pb.Commit, length: int) -> Commit:
        slow_us = 1e3 * self._clock.slow_motion  # of wire microseconds in one of the trial's milliseconds
        return Commit(
            start=commit.start,
            tokens=list(commit.tokens),
            drafted=commit.drafted_mask.bit_count(),
            echo_sent_at_ms=commit.echo_sent_at_us / 1e3 if commit.echo_sent_at_us else None,
            hold_ms=commit.hold_us / slow_us,
            queue_ms=commit.queue_us / slow_us,
            forward_ms=commit.forward_us / slow_us,
            budget=commit.draft_budget,
            finished=commit.start + len(commit.tokens) >= length,
        )

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._streams[task]
        error = None if task.cancelled() or self._closing else task.exception()
        if error is not None and not self._clock.failed.done():
            self._clock.failed.set_exception(error)

    async def close(self) -> None:
        """Cancel what is open, and wait until the verifier has let go of it."""
        self._closing = True
        streams = dict(self._streams)
        for outbox in streams.values():
            outbox.put_nowait(pb.GenerateRequest(cancel=pb.Cancel()))
        if streams:
            _, left = await asyncio.wait(streams, timeout=FAREWELL_S)
            for task in left:
                task.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
        for channel in self._channels:
            await channel.close()


async def write(call: Any, request: pb.GenerateRequest) -> None:
    """Write; if the stream ends in the meantime, reading tells how.

    Not by `call.write`, for the reason that `edge_client.link.session_link` gives.
    """
    with contextlib.suppress(grpc.aio.BaseError):
        await call._cython_call.send_serialized_message(request.SerializeToString())


async def _send(call: Any, outbox: asyncio.Queue[pb.GenerateRequest]) -> None:
    while True:
        await write(call, await outbox.get())
