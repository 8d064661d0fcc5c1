"""The adaptive pace against the best fixed policy in hindsight, over a grid, in the simulator.

For every cell (acceptance, draft time, step time, round trip) the same answers are played under the adaptive pace and
under every fixed policy; the best of those, chosen with the answers known, is what no rule can choose beforehand.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import track

from benchmarks import report
from netlab.simulator.device import DeviceSettings
from netlab.simulator.link import Link
from netlab.simulator.pair import heavy_headed
from netlab.simulator.run import Rider, simulate
from netlab.simulator.verifier import StepTime, VerifierSettings
from speculation.adaptive import Adaptive
from speculation.pace import FixedLookahead, Pace, Streaming, Synchronous

ACCEPTANCES = (0.5, 0.75, 0.9)
DRAFT_MS = (2, 5, 12, 40)
STEP_MS = (8, 30, 100)
RTT_MS = (0, 20, 50, 100, 200, 400)
Cell = tuple[float, int, int, int]

FIXED: dict[str, Callable[[], Pace]] = {
    "streaming": Streaming,
    **{f"sync:{k}": partial(Synchronous, k) for k in (1, 2, 4, 8, 14)},
    **{
        f"depth {depth}, patience {patience} ms": partial(FixedLookahead, depth, patience, 2)
        for depth, patience in itertools.product((4, 16, 48), (0, 5, 10, 20))
    },
}


def play(cell: Cell, make: Callable[[], Pace], answers: int, tokens: int) -> float:
    """Median ms per token over the cell's answers. Raises AssertionError if words differ."""
    acceptance, draft_ms, step_ms, rtt_ms = cell
    settings = VerifierSettings(step_time=StepTime(step_ms))
    taken = []
    for answer in heavy_headed(acceptance).answers(answers, tokens, seed=5):
        rider = Rider(answer, Link.of_rtt(rtt_ms), make(), DeviceSettings(draft_ms=draft_ms))
        result = simulate([rider], settings).results[0]
        assert result.same_words, f"other words at {cell}"
        taken.append(result.ms_per_token)
    return statistics.median(taken)


def summary(ratios: list[float]) -> dict[str, float]:
    """Median, 90th percentile and worst."""
    ordered = sorted(ratios)
    return {
        "p50": round(statistics.median(ordered), 3),
        "p90": round(ordered[len(ordered) * 9 // 10], 3),
        "max": round(ordered[-1], 3),
    }


@click.command(context_settings={"show_default": True})
@click.option("--answers", default=3, type=click.IntRange(1))
@click.option("--tokens", default=128, type=click.IntRange(2))
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(answers: int, tokens: int, json_file: Path | None) -> None:
    """Play the grid, print the summary and the cells where the pace does worst."""
    rows: list[dict[str, Any]] = []
    for cell in track(list(itertools.product(ACCEPTANCES, DRAFT_MS, STEP_MS, RTT_MS)), "cells"):
        adaptive = play(cell, Adaptive, answers, tokens)
        best, name = min((play(cell, make, answers, tokens), name) for name, make in FIXED.items())
        rows.append(
            {
                **dict(zip(("acceptance", "draft_ms", "step_ms", "rtt_ms"), cell, strict=True)),
                "adaptive_ms_per_token": round(adaptive, 3),
                "best_fixed_ms_per_token": round(best, 3),
                "best_fixed": name,
                "over_best_fixed": round(adaptive / best, 4),
                "over_streaming": round(adaptive / cell[2], 4),
            }
        )
    figures = {
        "settings": {"answers": answers, "tokens": tokens, "fixed_policies": list(FIXED)},
        "over_best_fixed": summary([row["over_best_fixed"] for row in rows]),
        "over_streaming": summary([row["over_streaming"] for row in rows]),
    }
    console = Console()
    console.print(f"{len(rows)} cells", figures["over_best_fixed"], figures["over_streaming"])
    for row in sorted(rows, key=lambda row: row["over_best_fixed"])[-5:]:
        console.print(row)
    report.write(json_file, figures | {"rows": rows})


if __name__ == "__main__":
    main()
