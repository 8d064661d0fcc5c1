"""A thousand sessions that wait and two hundred that write, in one verifier process.

Idle sessions hold a stream open and wait for their device, as an assistant does whose user reads: nothing moves on them
but gRPC's keepalive, and on every other one a `Ping` of the contract now and then. Active ones ask for one answer
after the other. Reported are memory per idle session, the processor's share, pings without a pong in time, streams that
broke, and the time per token of the active ones.
"""

from __future__ import annotations

import asyncio
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import click
import grpc
from outrider.v1 import verifier_pb2 as pb
from outrider.v1 import verifier_pb2_grpc as pb_grpc
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import report
from benchmarks.load import real
from benchmarks.load.answers import described
from benchmarks.load.profile import MemoryBound
from benchmarks.load.simulated import Setting
from benchmarks.load.verifier import LoadVerifier, VerifierSetup
from benchmarks.load.wire import write
from netlab.console import print_whole
from speculation.pace.base import PATIENCE_UNLIMITED_MS

STREAMS_PER_CONNECTION = 50
PONG_TIMEOUT_S = 10.0  # as gRPC's own keepalive allows
OPENING_AT_A_TIME = 50
DESCRIPTORS_LEFT = 256  # besides a connection's
PROFILE = MemoryBound(40.0, 0.02, 0.1, 4096)  # steps long enough for 200 sessions to be written for by one core
KEEPALIVE = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


class Idle:
    """Streams that are open and wait. pongs_ms: how long they took; missed: pings without one; broken: streams lost."""

    def __init__(self, address: str, sessions: int) -> None:
        connections = (sessions - 1) // STREAMS_PER_CONNECTION + 1
        self._channels = [grpc.aio.insecure_channel(address, KEEPALIVE) for _ in range(connections)]
        self._stubs: list[Any] = [pb_grpc.VerifierServiceStub(channel) for channel in self._channels]
        self._sessions = sessions
        self._calls: list[Any] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._opening = asyncio.Semaphore(OPENING_AT_A_TIME)
        self.pongs_ms: list[float] = []
        self.missed = self.broken = 0

    async def open(self, ping_every_s: float) -> None:
        """Open all of them. Every other one pings."""
        await asyncio.gather(*(self._open(index) for index in range(self._sessions)))
        for index, call in enumerate(self._calls):
            self._tasks.append(asyncio.create_task(self._wait(call, ping_every_s if index % 2 else None)))

    async def _open(self, index: int) -> None:
        """Past its first token, a session of unlimited patience waits for its device for ever."""
        async with self._opening:
            call = self._stubs[index % len(self._stubs)].Generate()
            await call.wait_for_connection()
            opening = pb.Open(
                protocol_version=1,
                prompt_ids=pb.TokenIds(ids=described(1)[0].prompt),
                patience_ms=PATIENCE_UNLIMITED_MS,
            )
            opening.sampling.max_tokens, opening.sampling.ignore_eos = 64, True
            await write(call, pb.GenerateRequest(open=opening))
            while (await call.read()).WhichOneof("message") != "commit":
                pass
            self._calls.append(call)

    async def _wait(self, call: Any, ping_every_s: float | None) -> None:
        try:
            while ping_every_s is not None:
                await asyncio.sleep(ping_every_s)
                sent_s = time.perf_counter()
                await write(call, pb.GenerateRequest(ping=pb.Ping(sent_at_us=1)))
                try:
                    await asyncio.wait_for(asyncio.shield(self._pong(call)), PONG_TIMEOUT_S)
                    self.pongs_ms.append((time.perf_counter() - sent_s) * 1e3)
                except TimeoutError:
                    self.missed += 1
                    return
            await call.read()  # which nothing but the end of the stream ends
            self.broken += 1
        except grpc.aio.AioRpcError:
            self.broken += 1

    async def _pong(self, call: Any) -> None:
        if await call.read() is grpc.aio.EOF:
            raise grpc.aio.UsageError("the verifier ended the stream")

    async def close(self) -> None:
        """Leave."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for call in self._calls:
            call.cancel()
        for channel in self._channels:
            await channel.close()


def free_place(connections: int) -> None:
    """Allow as many open files as the streams' connections need. Raises click.ClickException."""
    wanted = connections + DESCRIPTORS_LEFT
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted or soft == resource.RLIM_INFINITY:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError) as error:
        raise click.ClickException(
            f"{connections} connections need {wanted} open files, but this user may have {hard}; raise it with "
            f"`ulimit -n {wanted}` as root"
        ) from error


async def idle_and_active(idle: int, active: int, setting: Setting, verifier: LoadVerifier) -> dict[str, Any]:
    """Open the idle ones, then let the active ones write."""
    waiting = Idle(verifier.address, idle)
    before = verifier.read()
    await waiting.open(ping_every_s=5.0)
    await asyncio.sleep(1.0)
    opened = verifier.read()
    await asyncio.sleep(5.0)
    quiet = verifier.read().since(opened)
    played, figures = await real.play("latency", active, setting, verifier, described(32), 1.0)
    settled = verifier.read()
    missed, broken = waiting.missed, waiting.broken
    await waiting.close()
    return {
        "memory_per_idle_session_kib": round((opened.rss_bytes - before.rss_bytes) / 1024 / max(1, idle), 1),
        "rss_mib": round(settled.rss_bytes / 2**20),
        "cpu_of_the_idle": round(quiet["cpu_s"] / quiet["at_s"], 4),
        "missed_pongs": missed,
        "broken_streams": broken,
        "pongs": len(waiting.pongs_ms),
        "pong_ms_p50": round(statistics.median(waiting.pongs_ms), 2) if waiting.pongs_ms else None,
        "pong_ms_max": round(max(waiting.pongs_ms), 2) if waiting.pongs_ms else None,
        "active": played.as_json() | {name: round(value, 4) for name, value in figures.items()},
    }


@click.command(context_settings={"show_default": True})
@click.option("--idle", default=1000, type=click.IntRange(1))
@click.option("--active", default=200, type=click.IntRange(1))
@click.option("--seconds", default=30.0, type=click.FloatRange(2.0), help="That the active ones are watched.")
@report.json_option()
def main(idle: int, active: int, seconds: float, json_file: Path | None) -> None:
    """Open them all, watch, and fail if a keepalive was missed."""
    free_place(2 * (idle // STREAMS_PER_CONNECTION + active))
    setting = Setting(PROFILE, warm_ms=5000.0, watch_ms=seconds * 1e3)
    setup = VerifierSetup(described(32), PROFILE, max_sequences=2 * (idle + active))
    console = Console()
    with LoadVerifier(setup) as verifier, Progress(console=console) as progress:
        progress.add_task(f"{idle} idle and {active} active sessions", total=None)
        found = asyncio.run(idle_and_active(idle, active, setting, verifier))
    table = Table("", "")
    for name, value in found.items():
        if name != "active":
            table.add_row(name, str(value))
    for name in ("tpot_p50", "tpot_p95", "step_ms", "busy", "wrong_words", "verifier_cpu", "generator_cpu", "trouble"):
        table.add_row(f"active: {name}", str(found["active"][name]))
    print_whole(console, table)
    report.write(json_file, {"settings": {"idle": idle, "active": active, "seconds": seconds}} | found)
    if found["missed_pongs"] or found["broken_streams"] or found["active"]["wrong_words"]:
        raise click.ClickException(
            f"{found['missed_pongs']} keepalives were missed, {found['broken_streams']} streams broke, "
            f"{found['active']['wrong_words']} answers had other words"
        )


if __name__ == "__main__":
    main()
