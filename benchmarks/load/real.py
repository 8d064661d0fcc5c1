"""A trial against a real verifier over real sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.load.answers import Written, jobs
from benchmarks.load.outcome import Outcome, outcome
from benchmarks.load.seat import Seat, pace_of
from benchmarks.load.simulated import Setting
from benchmarks.load.verifier import LoadVerifier
from benchmarks.load.wire import WallClock, WirePort
from netlab.simulator.device import DeviceSettings
from netlab.simulator.link import Link

MOST_CPU = 0.8  # of a core: a process that needs more is itself the limit
MOST_LATE = 0.1  # of a step, that steps may take longer, or devices be late in the 95th percentile


def trial(
    mode: str, sessions: int, setting: Setting, verifier: LoadVerifier, written: Sequence[Written], slow_motion: float
) -> tuple[Outcome, dict[str, float]]:
    """Play one trial; also returns what the two processes used."""
    return asyncio.run(play(mode, sessions, setting, verifier, written, slow_motion))


async def play(
    mode: str, sessions: int, setting: Setting, verifier: LoadVerifier, written: Sequence[Written], slow_motion: float
) -> tuple[Outcome, dict[str, float]]:
    """`trial`, on an event loop that may have other work."""
    clock = WallClock(slow_motion)
    port = WirePort(clock, verifier.address, sessions)
    seats = [
        Seat(
            clock.env,
            port,
            Link.of_rtt(setting.rtt_ms, seed=index),
            pace_of(mode),
            jobs(written, setting.acceptance, str(index)),
            DeviceSettings(setting.draft_ms),
            setting.starts_ms(index, sessions),
        )
        for index in range(sessions)
    ]
    try:
        clock.happen(lambda: None)
        begin, end = setting.window_ms
        await _until(clock, begin)
        before, cpu_s, began_s = verifier.read(), time.process_time(), time.perf_counter()
        drafts = port.drafts
        clock.late_ms.clear()
        await _until(clock, end)
        used, drafts = verifier.read().since(before), port.drafts - drafts
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - began_s
    finally:
        clock.stop()
        await port.close()
    step_ms = used["slept_s"] * 1e3 / slow_motion / max(1.0, used["steps"])
    figures = {
        "verifier_cpu": used["cpu_s"] / wall_s,
        "generator_cpu": cpu_s / wall_s,
        "late_step_share": used["late_s"] / max(1e-9, used["slept_s"]),
        "late_device_ms_p95": float(np.percentile(clock.late_ms, 95)) if clock.late_ms else 0.0,
        "service_cpu_ms_per_commit": (used["cpu_s"] - used["engine_cpu_s"]) * 1e3 / max(1.0, used["blocks"]),
        "wall_s": wall_s,
        "commits": used["blocks"],
        "drafts_per_commit": drafts / max(1.0, used["blocks"]),
    }
    busy = used["slept_s"] / used["at_s"]
    notes = [seat.notes for seat in seats]
    return outcome(mode, notes, setting.window_ms, busy, step_ms, _trouble(figures, step_ms)), figures


async def _until(clock: WallClock, at_ms: float) -> None:
    """Wait for a moment of the trial. Raises what went wrong in it."""
    left_s = (at_ms - clock.now_ms()) * clock.slow_motion / 1e3
    done, _ = await asyncio.wait({clock.failed}, timeout=left_s)
    if done:
        clock.failed.result()


def _trouble(figures: dict[str, float], step_ms: float) -> str:
    """Why not the emulated GPU but this machine was the limit, if it was."""
    for who in ("verifier", "generator"):
        if figures[f"{who}_cpu"] > MOST_CPU:
            return f"the {who} used {figures[f'{who}_cpu']:.0%} of a core"
    if figures["late_step_share"] > MOST_LATE:
        return f"steps took {figures['late_step_share']:.0%} longer than they should"
    if figures["late_device_ms_p95"] > MOST_LATE * step_ms:
        return f"devices were {figures['late_device_ms_p95']:.1f} ms late in the 95th percentile"
    return ""
