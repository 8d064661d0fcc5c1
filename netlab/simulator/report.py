"""A sweep for people and for machines: progress, table and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from netlab import provenance
from netlab.simulator.sweep import Grid, Row, sweep


def run(grid: Grid, console: Console) -> list[Row]:
    """Sweep under a progress bar, which is drawn on terminals only."""
    columns = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=grid.runs())
        return list(sweep(grid, lambda: progress.advance(task)))


def table(rows: Sequence[Row]) -> Table:
    """One line per policy and cell. A column that says the same everywhere is left out."""
    view = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        collapse_padding=True,
        title="Medians over the answers. /stream, /oracle: total time over streaming's, the oracle's",
        title_justify="left",
    )
    conditions = {
        "pair": [row.cell.pair.name for row in rows],
        "step ms": [f"{row.cell.step_ms:g}" for row in rows],
        "draft ms": [f"{row.cell.draft_ms:g}" for row in rows],
        "RTT ms": [f"{row.cell.rtt_ms:g}" for row in rows],
    }
    shown = {name: values for name, values in conditions.items() if name == "RTT ms" or len(set(values)) > 1}
    for name in shown:
        view.add_column(name, justify="right", no_wrap=True)
    view.add_column("policy", overflow="fold")
    for name in ("ms/tok", "/stream", "p95", "/oracle", "fwd/tok", "accept", "B/tok"):
        view.add_column(name, justify="right", no_wrap=True)
    view.add_column("same")
    cell = rows[0].cell if rows else None
    for index, row in enumerate(rows):
        if row.cell != cell:
            view.add_section()
            cell = row.cell
        figures = row.as_json()
        label = row.candidate if row.candidate.startswith(row.policy) else f"{row.policy}: {row.candidate}"
        view.add_row(
            *(values[index] for values in shown.values()),
            label,
            f"{figures['ms_per_token_p50']:.2f}",
            f"{figures['total_over_streaming_p50']:.3f}",
            f"{figures['total_over_streaming_p95']:.3f}",
            f"{figures['total_over_oracle_p50']:.3f}",
            f"{figures['target_forwards_per_token']:.3f}",
            _or_dash(figures["acceptance"], ".2f"),
            _or_dash(figures["uplink_bytes_per_token"], ".1f"),
            "[green]yes" if figures["same_words"] else "[red bold]NO",
        )
    return view


def as_json(rows: Sequence[Row], settings: dict[str, Any]) -> dict[str, Any]:
    """The report, where it comes from included."""
    return {
        "commit": provenance.commit(),
        "date": provenance.today(),
        "hardware": provenance.hardware(),
        "settings": settings,
        "rows": [row.as_json() for row in rows],
    }


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"
