"""The adaptive pace against the best fixed policy in hindsight, over a grid, in the simulator.

For every cell (acceptance, draft time, step time, round trip) the same answers are played under the adaptive pace and
under every fixed policy; the best of those, chosen with the answers known, is what no rule can choose beforehand. For
`latency` the best has the least time per token. For `capacity` it has the fewest target forwards per token of those
that no answer slowed down to more than 1.05 times plain streaming; the adaptive pace has to hold that limit too.

Who chooses in hindsight knows how long the answers will be, and may begin with rounds that take longer than streaming
and earn the time back later. Nobody who decides while the answer is written can: it may end at any token. So the best
fixed policy for capacity is also named among those that hold the limit wherever the answer ends from its 32nd token on.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import report
from netlab.console import print_whole
from netlab.simulator.device import DeviceSettings
from netlab.simulator.link import Link
from netlab.simulator.oracle import oracle
from netlab.simulator.pair import heavy_headed
from netlab.simulator.run import Rider, simulate
from netlab.simulator.verifier import StepTime, VerifierSettings
from speculation.pace.adaptive import Adaptive
from speculation.pace.base import FixedLookahead, Objective, Pace, Pipelined, Streaming, Synchronous
from speculation.pace.experience import Experience

ACCEPTANCES = (0.5, 0.7, 0.85, 0.95)
DRAFT_MS = (2, 5, 12, 40)
STEP_MS = (8, 30, 100)
RTT_MS = (0, 20, 50, 100, 200, 400)
TIME_LIMIT = 1.05  # of streaming's time, for every answer
SHORTEST_TOKENS = 32  # of the answers that hold it wherever they end

FIXED: dict[str, Callable[[], Pace]] = {
    "streaming": Streaming,
    **{f"sync:{k}": partial(Synchronous, k) for k in (1, 2, 3, 4, 6, 8, 12, 16)},
    **{
        f"pipelined:{depth}/{block}": partial(Pipelined, depth, block)
        for depth, block in ((4, 2), (8, 4), (16, 4), (16, 8), (48, 4), (48, 8))
    },
    **{
        f"fixed:{depth}@{patience}/{block}": partial(FixedLookahead, depth, patience, block)
        for depth, patience in itertools.product((4, 16, 48), (0, 5, 10, 20, 50))
        for block in ((2, 8) if patience >= 20 else (2,))
    },
}


class Cell(NamedTuple):
    """Conditions."""

    acceptance: float
    draft_ms: float
    step_ms: float
    rtt_ms: float


class Cost(NamedTuple):
    """Over all answers of a cell.

    slowest: the slowest answer's time per token over streaming's; slowest_anywhere: the same if answers may end at any
    token from the 32nd on.
    """

    ms_per_token: float
    forwards_per_token: float
    slowest: float
    slowest_anywhere: float


class Played(NamedTuple):
    """What one cell came to. oracle_ms: per token, of one that knows the answers and the link in advance."""

    cell: Cell
    adaptive: dict[Objective, Cost]
    fixed: dict[str, Cost]
    oracle_ms: float


def play(cell: Cell, make: Callable[[], Pace], count: int, tokens: int, seed: int) -> Cost:
    """One policy in one cell. Raises AssertionError if words differ."""
    settings = VerifierSettings(step_time=StepTime(cell.step_ms))
    results = []
    for answer in heavy_headed(cell.acceptance).answers(count, tokens, seed):
        rider = Rider(answer, Link.of_rtt(cell.rtt_ms), make(), DeviceSettings(draft_ms=cell.draft_ms))
        results += simulate([rider], settings).results
    assert all(result.same_words for result in results), f"other words at {cell}"
    return Cost(
        sum(result.total_ms - result.ttft_ms for result in results) / sum(result.tokens - 1 for result in results),
        sum(result.target_forwards for result in results) / sum(result.tokens for result in results),
        max(result.ms_per_token for result in results) / cell.step_ms,
        max(_slowest_anywhere(result.arrived_ms) for result in results) / cell.step_ms,
    )


def _slowest_anywhere(arrived_ms: Sequence[float]) -> float:
    """The most milliseconds per token of all the answers that this one might have been, had it ended earlier."""
    ends = range(min(SHORTEST_TOKENS, len(arrived_ms)) - 1, len(arrived_ms))
    return max((arrived_ms[end] - arrived_ms[0]) / max(1, end) for end in ends)


def play_cell(cell: Cell, count: int, tokens: int, seed: int) -> Played:
    """Every policy in one cell. The answers of the adaptive pace are one client's: they share what it measures."""
    adaptive = {
        objective: play(cell, partial(Adaptive, objective, Experience()), count, tokens, seed)
        for objective in (Objective.LATENCY, Objective.BALANCED, Objective.CAPACITY)
    }
    settings = VerifierSettings(step_time=StepTime(cell.step_ms))
    answers = heavy_headed(cell.acceptance).answers(count, tokens, seed)
    bounds = [oracle(answer, Link.of_rtt(cell.rtt_ms), cell.draft_ms, settings) for answer in answers]
    oracle_ms = sum(b.total_ms - b.ttft_ms for b in bounds) / sum(b.tokens - 1 for b in bounds)
    return Played(
        cell, adaptive, {name: play(cell, make, count, tokens, seed) for name, make in FIXED.items()}, oracle_ms
    )


def row(played: Played) -> dict[str, Any]:
    """A cell's figures, and the two best fixed policies."""
    fixed, (latency, balanced, capacity) = played.fixed, played.adaptive.values()
    fast = min(fixed, key=lambda name: fixed[name].ms_per_token)
    in_time = [name for name, cost in fixed.items() if cost.slowest <= TIME_LIMIT]
    frugal = min(in_time, key=lambda name: fixed[name].forwards_per_token)
    always = [name for name, cost in fixed.items() if cost.slowest_anywhere <= TIME_LIMIT]
    steady = min(always, key=lambda name: fixed[name].forwards_per_token)
    return {
        **played.cell._asdict(),
        **{
            f"{name}_{figure}": round(value, 4)
            for name, cost in (("latency", latency), ("balanced", balanced), ("capacity", capacity))
            for figure, value in cost._asdict().items()
        },
        "best_latency": fast,
        "best_capacity": frugal,
        "best_capacity_anywhere": steady,
        "latency_over_best": round(latency.ms_per_token / fixed[fast].ms_per_token, 4),
        "capacity_over_best": round(capacity.forwards_per_token / fixed[frugal].forwards_per_token, 4),
        "capacity_over_best_anywhere": round(capacity.forwards_per_token / fixed[steady].forwards_per_token, 4),
        "latency_over_streaming": round(latency.ms_per_token / fixed["streaming"].ms_per_token, 4),
        "latency_over_oracle": round(latency.ms_per_token / played.oracle_ms, 4),
    }


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, 90th and 97th percentile, and worst."""
    p50, p90, p97, most = np.percentile(values, [50, 90, 97, 100])
    return {"p50": round(p50, 3), "p90": round(p90, 3), "p97": round(p97, 3), "max": round(most, 3)}


SUMMARISED = {
    "latency_over_best": "ms per token over the best fixed policy's, latency",
    "capacity_over_best": "target forwards per token over the best fixed policy's, capacity",
    "capacity_over_best_anywhere": "the same, of those that are in time wherever an answer ends",
    "latency_over_oracle": "ms per token over the oracle's, latency",
    "latency_slowest": "slowest answer over streaming, latency",
    "balanced_slowest": "slowest answer over streaming, balanced",
    "capacity_slowest": "slowest answer over streaming, capacity",
    "capacity_slowest_anywhere": "the same, wherever it ends",
    "latency_forwards_per_token": "target forwards per token, latency",
    "balanced_forwards_per_token": "target forwards per token, balanced",
    "capacity_forwards_per_token": "target forwards per token, capacity",
}


@click.command(context_settings={"show_default": True})
@click.option("--answers", default=6, type=click.IntRange(1))
@click.option("--tokens", default=192, type=click.IntRange(2))
@click.option("--seed", default=5, help="Of the answers.")
@click.option("--jobs", default=os.cpu_count(), type=click.IntRange(1))
@report.json_option()
def main(answers: int, tokens: int, seed: int, jobs: int, json_file: Path | None) -> None:
    """Play the grid; print the summary and the cells where the pace does worst."""
    cells = list(itertools.starmap(Cell, itertools.product(ACCEPTANCES, DRAFT_MS, STEP_MS, RTT_MS)))
    console = Console()
    with ProcessPoolExecutor(jobs) as pool:
        played = pool.map(partial(play_cell, count=answers, tokens=tokens, seed=seed), cells)
        rows = [row(one) for one in track(played, "cells", len(cells), console=console)]
    figures = {name: summary([r[name] for r in rows]) for name in SUMMARISED}
    table = Table("", *next(iter(figures.values())), title=f"{len(rows)} cells", title_justify="left")
    for name, what in SUMMARISED.items():
        table.add_row(what, *(f"{value:.3f}" for value in figures[name].values()))
    print_whole(console, table)
    for objective in ("latency", "capacity"):
        for worst in sorted(rows, key=lambda r: r[f"{objective}_over_best"])[-3:]:
            cell = ", ".join(f"{key} {worst[key]:g}" for key in Cell._fields)
            best = worst[f"best_{objective}"]
            console.print(f"{objective}: {worst[f'{objective}_over_best']} of {best} at {cell}")
    settings = {
        "answers": answers,
        "tokens": tokens,
        "seed": seed,
        "time_limit": TIME_LIMIT,
        "fixed_policies": list(FIXED),
    }
    report.write(json_file, {"settings": settings, **figures, "rows": rows})


if __name__ == "__main__":
    main()
