"""What the service costs per commit: the verifier process' processor time, less its engine's.

Beside it, what a service costs that does nothing with the same messages.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks.load import real
from benchmarks.load.answers import described
from benchmarks.load.bare import Traffic, cpu_ms_per_commit
from benchmarks.load.profile import MemoryBound
from benchmarks.load.simulated import Setting
from benchmarks.load.verifier import LoadVerifier, VerifierSetup
from netlab.console import print_whole

PROFILE = MemoryBound(60.0, 0.05, 0.1, 256)
BAR_MS = 0.3


async def measured(sessions: int, seconds: float) -> list[dict[str, Any]]:
    """A row per mode."""
    setting = Setting(PROFILE, warm_ms=3000.0, watch_ms=seconds * 1e3)
    written = described(32)
    rows = []
    for mode in ("streaming", "latency", "capacity"):
        with LoadVerifier(VerifierSetup(written, PROFILE)) as verifier:
            played, figures = await real.play(mode, sessions, setting, verifier, written, 1.0)
        cpu_ms, tokens = figures["service_cpu_ms_per_commit"], played.tokens_per_forward
        interval_s = figures["wall_s"] * sessions / figures["commits"]
        traffic = Traffic(sessions, interval_s, round(tokens), figures["drafts_per_commit"])
        rows.append(
            {
                "mode": mode,
                "cpu_ms_per_commit": round(cpu_ms, 3),
                "of_that_grpc": round(await cpu_ms_per_commit(traffic, seconds), 3),
                "cpu_ms_per_token": round(cpu_ms / tokens, 3),
                "tokens_per_commit": round(tokens, 2),
                "drafts_per_commit": round(figures["drafts_per_commit"], 2),
                "verifier_cpu": round(figures["verifier_cpu"], 3),
            }
        )
    return rows


@click.command(context_settings={"show_default": True})
@click.option("--sessions", default=160, type=click.IntRange(1))
@click.option("--seconds", default=15.0, type=click.FloatRange(1.0), help="That each mode is watched.")
@report.json_option()
def main(sessions: int, seconds: float, json_file: Path | None) -> None:
    """Measure streaming, and sessions that draft."""
    rows = asyncio.run(measured(sessions, seconds))
    table = Table(
        *(name.replace("_", " ") for name in rows[0]),
        title=f"Service overhead; the bar is {BAR_MS} ms",
        title_justify="left",
    )
    for row in rows:
        table.add_row(*map(str, row.values()))
    print_whole(Console(), table)
    report.write(json_file, {"settings": {"sessions": sessions, "seconds": seconds, "bar_ms": BAR_MS}, "rows": rows})


if __name__ == "__main__":
    main()
