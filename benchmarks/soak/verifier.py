"""The verifier that is soaked: the product's own, with a real model, keys, quotas, metrics and its access log."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from benchmarks.load.measured import MeasuredVerifier, answers
from netlab.experiments.rig import DEMO

CONTEXT_TOKENS = 512
PLACES = 64
KV_GIB = 0.05  # for 102 pages of 64 tokens: the cache of beginnings is full after seconds


@dataclass(frozen=True)
class SoakSetup:
    """keys: file of API keys. step_ms: least time of a step. lease_s: as in the service's."""

    keys: Path
    step_ms: float
    lease_s: float


@dataclass(frozen=True)
class Reading:
    """How the process is.

    at_s: its clock. cpu_s: used so far. python_blocks: pieces of memory that Python has given out. tasks: of asyncio.
    sessions, principals: that the service and its admission know. series: numbers among its metrics. pages_used,
    pages_cached, pages_free: of keys and values.
    """

    at_s: float
    cpu_s: float
    rss_bytes: int
    python_blocks: int
    tasks: int
    sessions: int
    principals: int
    series: int
    pages_used: int
    pages_cached: int
    pages_free: int


class SoakVerifier(MeasuredVerifier[SoakSetup, Reading]):
    """Starts the process and waits until it serves."""

    def __init__(self, setup: SoakSetup) -> None:
        super().__init__(_run, setup)


def _run(setup: SoakSetup, pipe: Connection) -> None:
    asyncio.run(_serve(setup, pipe))


async def _serve(setup: SoakSetup, pipe: Connection) -> None:
    from cloud_verifier.engines.paced import PacedEngine
    from cloud_verifier.engines.torch_engine import load
    from cloud_verifier.observability import logs
    from cloud_verifier.observability.metrics import Metrics
    from cloud_verifier.security.authentication import Authentication
    from cloud_verifier.security.keys import KeyStore
    from cloud_verifier.server import running
    from cloud_verifier.serving.address import Address
    from cloud_verifier.serving.codec import Codec
    from cloud_verifier.serving.open_request import Served
    from cloud_verifier.serving.service import ServiceSettings

    model = str(DEMO / "target")
    engine = load(model, threads=1, max_sequences=PLACES, context_limit=CONTEXT_TOKENS, kv_cache_gib=KV_GIB)
    paced = PacedEngine(engine, setup.step_ms)
    served = Served("demo", engine.info, Codec(model))
    metrics = Metrics()
    with open(os.devnull, "w") as nowhere:  # noqa: ASYNC230
        logs.configure("json", "info", nowhere)
        warnings = logging.StreamHandler(sys.stderr)
        warnings.setLevel(logging.WARNING)
        logging.getLogger().addHandler(warnings)
        async with running(
            paced,
            served,
            Address(port=0),
            service_settings=ServiceSettings(lease_s=setup.lease_s),
            authentication=Authentication(KeyStore(setup.keys)),
            watchers=[logs.AccessLog(), metrics],
            metrics=metrics,
        ) as verifier:
            memory = psutil.Process().memory_info

            def reading() -> Reading:
                pages = engine.memory
                return Reading(
                    at_s=time.perf_counter(),
                    cpu_s=time.process_time(),
                    rss_bytes=memory().rss,
                    # Not by the collector's list of objects: that list alone is megabytes, and moves the heap.
                    python_blocks=sys.getallocatedblocks(),
                    tasks=len(asyncio.all_tasks()),
                    sessions=verifier.service.sessions,
                    principals=verifier.service.principals,
                    series=sum(len(metric.samples) for metric in metrics.registry.collect()),
                    pages_used=pages.used,
                    pages_cached=pages.cached,
                    pages_free=pages.free,
                )

            await answers(pipe, verifier.port, reading)
