"""A real verifier in a process of its own: gRPC, scheduler and service as served, and an engine that takes its time."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

import psutil

from benchmarks.load.answers import Written
from benchmarks.load.measured import MeasuredVerifier, answers
from benchmarks.load.profile import MemoryBound
from benchmarks.load.target import WrittenTarget
from netlab.experiments.rig import DEMO


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
    slept_s, late_s: as in `target.Work`. rss_bytes, sessions: now.
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
    sessions: int

    def since(self, before: Reading) -> dict[str, float]:
        """What happened since an earlier reading."""
        now, then = asdict(self), asdict(before)
        return {name: now[name] - then[name] for name in now}


class LoadVerifier(MeasuredVerifier[VerifierSetup, Reading]):
    """Starts the process and waits until it serves."""

    def __init__(self, setup: VerifierSetup) -> None:
        super().__init__(_run, setup)


def _run(setup: VerifierSetup, pipe: Connection) -> None:
    asyncio.run(_serve(setup, pipe))


async def _serve(setup: VerifierSetup, pipe: Connection) -> None:
    from cloud_verifier.scheduling.scheduler import SchedulerSettings
    from cloud_verifier.server import SWITCH_INTERVAL_S, running
    from cloud_verifier.serving.address import Address
    from cloud_verifier.serving.codec import Codec
    from cloud_verifier.serving.open_request import Served
    from cloud_verifier.serving.service import ServiceSettings

    sys.setswitchinterval(SWITCH_INTERVAL_S)
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
    async with running(engine, served, Address(port=0), steps, ServiceSettings(lease_s=setup.lease_s)) as verifier:
        await answers(pipe, verifier.port, lambda: _reading(engine, verifier.service.sessions))


def _reading(engine: WrittenTarget, sessions: int) -> Reading:
    work: dict[str, Any] = asdict(engine.work)
    return Reading(
        at_s=time.perf_counter(),
        cpu_s=time.process_time(),
        engine_cpu_s=work.pop("cpu_s"),
        **work,
        rss_bytes=psutil.Process().memory_info().rss,
        sessions=sessions,
    )
