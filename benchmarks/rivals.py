"""The adaptive pace against the field's controllers, in the simulator.

Each rival is its published rule as a policy (`netlab.simulator.rivals`), and rides as its authors have it: in rounds or
with one block ahead. `sync` is the best length of synchronous rounds, `best-fixed` the best of everything that does not
look at what happens; both are chosen with the answers known.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import report
from netlab.console import print_whole
from netlab.simulator import recording
from netlab.simulator.pair import Pair, heavy_headed
from netlab.simulator.sweep import Grid, sweep

RECORDED = Path(__file__).resolve().parent.parent / "tests" / "data" / "demo_pair.jsonl"
RIVALS = ("heuristic", "confidence", "p-min", "entropy", "specdec++", "ucb", "draft-ahead", "sync", "best-fixed")
RTTS_MS = (0.0, 20.0, 50.0, 100.0, 200.0)
DRAFTS_MS = (2.0, 5.0, 12.0)
STEP_MS = 30.0


def pairs() -> list[Pair]:
    """The demo pair as recorded, and two described ones, weaker and stronger."""
    return [recording.read(RECORDED).pair("demo pair"), heavy_headed(0.7), heavy_headed(0.9)]


def cells() -> Iterator[tuple[int, float, float]]:
    """Number of the pair, time of a guess, round trip."""
    yield from ((pair, draft, rtt) for pair in range(len(pairs())) for draft in DRAFTS_MS for rtt in RTTS_MS)


def play(cell: tuple[int, float, float], answers: int, tokens: int) -> list[dict[str, Any]]:
    """A row per policy."""
    pair, draft_ms, rtt_ms = cell
    policies = ("streaming", "adaptive", *RIVALS)
    grid = Grid([pairs()[pair]], [rtt_ms], [draft_ms], [STEP_MS], policies, answers, tokens, seed=21)
    return [row.as_json() for row in sweep(grid)]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per rival, its time per token over the adaptive pace's: over 1, the rival is slower."""
    times = {(r["pair"], r["draft_ms"], r["rtt_ms"], r["policy"]): r["ms_per_token_p50"] for r in rows}
    result = []
    for rival in RIVALS:
        over = {key[:3]: value / times[*key[:3], "adaptive"] for key, value in times.items() if key[3] == rival}
        best_pair, best_draft, best_rtt = min(over, key=lambda key: over[key])
        values = list(over.values())
        result.append(
            {
                "rival": rival,
                "time_over_adaptive_p50": round(float(np.median(values)), 3),
                "least": round(min(values), 3),
                "most": round(max(values), 3),
                "cells_won": sum(value < 0.995 for value in values),
                "cells": len(values),
                "best_at": f"{best_pair}, guess {best_draft:g} ms, round trip {best_rtt:g} ms",
                **{
                    f"at_rtt_{rtt:g}_ms": round(float(np.median([v for k, v in over.items() if k[2] == rtt])), 3)
                    for rtt in RTTS_MS
                },
            }
        )
    return result


@click.command(context_settings={"show_default": True})
@click.option("--answers", default=24, type=click.IntRange(1))
@click.option("--tokens", default=128, type=click.IntRange(2))
@click.option("--jobs", default=os.cpu_count(), type=click.IntRange(1))
@report.json_option()
def main(answers: int, tokens: int, jobs: int, json_file: Path | None) -> None:
    """Play every cell; print how much slower each rival is."""
    console = Console()
    todo = list(cells())
    with ProcessPoolExecutor(jobs) as pool:
        played = pool.map(partial(play, answers=answers, tokens=tokens), todo)
        rows = [row for found in track(played, "cells", len(todo), console=console) for row in found]
    title = "Time per token over the adaptive pace's"
    table = Table(
        "rival",
        "median",
        *(f"RTT {rtt:g}" for rtt in RTTS_MS),
        "least",
        "most",
        "wins",
        title=title,
        title_justify="left",
    )
    found = summary(rows)
    for one in found:
        by_rtt = [str(one[f"at_rtt_{rtt:g}_ms"]) for rtt in RTTS_MS]
        wins = f"{one['cells_won']} of {one['cells']}"
        table.add_row(
            one["rival"],
            str(one["time_over_adaptive_p50"]),
            *by_rtt,
            str(one["least"]),
            str(one["most"]),
            wins,
        )
    print_whole(console, table)
    settings = {"answers": answers, "tokens": tokens, "step_ms": STEP_MS}
    report.write(json_file, {"settings": settings, "summary": found, "rows": rows})


if __name__ == "__main__":
    main()
