"""A real verifier in a process of its own: gRPC, scheduler and service as served, and an engine that takes its time."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import psutil

from benchmarks.load.answers import Written
from benchmarks.load.profile import MemoryBound
from benchmarks.load.target import WrittenTarget
from netlab.experiments.rig import DEMO

ANSWERS_WITHIN_S = 300.0  # it loads a tokenizer first, which takes minutes on a machine that is busy otherwise


@dataclass(frozen=True)
class VerifierSetup:
    """What the process is to serve. max_sequences: in place of the profile's limit. lease_s: as in the service's."""

    written: Sequence[Written]
    profile: MemoryBound
    slow_motion: float = 1.0
    max_sequences: int | None = None
    lease_s: float = 60.0
    chunk_tokens: int = 256


@dataclass(frozen=True)
class Reading:
    """What the process has used and done so far; differences of two readings are what counts.

    at_s: its clock. cpu_s: of the process, engine_cpu_s: of the engine's thread in steps. steps, blocks, positions,
    slept_s, late_s: as in `target.Work`. rss_bytes, objects, tasks, sessions: now.
    """

    at_s: float
    cpu_s: float
    engine_cpu_s: float
    steps: int
    blocks: int
    positions: int
    slept_s: float
    late_s: float
    rss_bytes: int
    objects: int
    tasks: int
    sessions: int

    def since(self, before: Reading) -> dict[str, float]:
        """What happened since an earlier reading."""
        now, then = asdict(self), asdict(before)
        return {name: now[name] - then[name] for name in now}


class LoadVerifier:
    """Starts the process and waits until it serves; a context manager. address: HOST:PORT."""

    def __init__(self, setup: VerifierSetup) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(setup, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.address = f"127.0.0.1:{self._answer()}"

    def read(self) -> Reading:
        """Ask how it fares. Raises EOFError if it is gone, TimeoutError if it hangs."""
        self._pipe.send("read")
        reading: Reading = self._answer()
        return reading

    def _answer(self) -> Any:
        if not self._pipe.poll(ANSWERS_WITHIN_S):
            raise TimeoutError(f"the verifier's process said nothing for {ANSWERS_WITHIN_S:g} s")
        return self._pipe.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()  # which ends it
        self._process.join(timeout=15)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _run(setup: VerifierSetup, pipe: Connection) -> None:
    asyncio.run(_serve(setup, pipe))


async def _serve(setup: VerifierSetup, pipe: Connection) -> None:
    from cloud_verifier.opening import Served
    from cloud_verifier.scheduler import SchedulerSettings
    from cloud_verifier.server import Address, running
    from cloud_verifier.service import ServiceSettings
    from cloud_verifier.text import Codec

    codec = Codec(str(DEMO / "target"))
    engine = WrittenTarget(
        setup.written,
        setup.profile,
        slow_motion=setup.slow_motion,
        vocabulary_size=len(codec.vocabulary.strings),
        max_sequences=setup.max_sequences or setup.profile.max_sessions,
    )
    served = Served("written", engine.info, codec)
    steps = SchedulerSettings(setup.profile.free_positions, setup.chunk_tokens)
    ended = asyncio.Event()
    async with running(engine, served, Address(port=0), steps, ServiceSettings(lease_s=setup.lease_s)) as verifier:

        def answer() -> None:
            try:
                pipe.recv()
                pipe.send(_reading(engine, verifier.service.sessions))
            except (EOFError, OSError):
                asyncio.get_running_loop().remove_reader(pipe.fileno())
                ended.set()

        asyncio.get_running_loop().add_reader(pipe.fileno(), answer)
        pipe.send(verifier.port)
        await ended.wait()


def _reading(engine: WrittenTarget, sessions: int) -> Reading:
    work: dict[str, Any] = asdict(engine.work)
    return Reading(
        at_s=time.perf_counter(),
        cpu_s=time.process_time(),
        engine_cpu_s=work.pop("cpu_s"),
        **work,
        rss_bytes=psutil.Process(os.getpid()).memory_info().rss,
        objects=len(gc.get_objects()),
        tasks=len(asyncio.all_tasks()),
        sessions=sessions,
    )
