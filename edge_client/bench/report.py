"""`edge-client bench`: run the measurements and show them, as tables or as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

import click
from rich.console import Console
from rich.table import Table

from edge_client.bench.bare_runtime import Overhead, compare
from edge_client.bench.measure import BLOCK_TOKENS, Measurements, contexts_within, measure
from edge_client.drafters import load_drafter
from edge_client.drafters.base import Drafter, DrafterError
from edge_client.drafters.settings import DeviceSettings


@dataclass(frozen=True)
class Report:
    """figures: of the drafter alone. against_bare: at each context, if asked for."""

    figures: Measurements
    against_bare: tuple[Overhead, ...] = ()


def run(spec: str, *, threads: int, tokens: int, against_bare: bool, settings: DeviceSettings | None = None) -> Report:
    """Measure what `spec` names. Raises DrafterError."""
    settings = settings or DeviceSettings()

    def load() -> Drafter:
        drafter = load_drafter(spec, threads=threads, settings=settings)
        if drafter is None:
            raise DrafterError(f"{spec!r} names no drafter: there is nothing to measure")
        return drafter

    load().close()  # a runtime's trial, once on this machine, is no part of what loading takes
    figures = measure(load, tokens=tokens)
    if not against_bare:
        return Report(figures)
    drafter = load()
    try:
        contexts = contexts_within(drafter.info.context_tokens, tokens)
        return Report(figures, tuple(compare(drafter, settings, context, tokens=tokens) for context in contexts))
    finally:
        drafter.close()


def show(report: Report, *, as_json: bool) -> None:
    """Print to standard output."""
    console = Console()
    for notice in report.figures.notices:
        click.secho(notice, fg="yellow", err=True)
    if as_json:
        overheads = [
            dataclasses.asdict(o) | {"overhead_ms": o.overhead_ms, "overhead_percent": o.overhead_percent}
            for o in report.against_bare
        ]
        content = dataclasses.asdict(report.figures) | {"block_tokens": BLOCK_TOKENS, "against_bare": overheads}
        console.print_json(json.dumps(content))
        return
    figures = report.figures
    console.print(f"{figures.drafter}{f' ({figures.runs_on})' if figures.runs_on else ''}")
    memory = "unknown" if figures.memory_bytes is None else f"{figures.memory_bytes / 2**20:.0f} MiB"
    console.print(
        f"load {figures.load_ms:.0f} ms, prefill {figures.prefill_tokens_per_s:.0f} tokens/s, memory {memory}"
    )
    table = Table("context", "ms per token", f"ms per block of {BLOCK_TOKENS}", "rollback, ms")
    for at in figures.contexts:
        table.add_row(str(at.context_tokens), *(f"{ms:.3f}" for ms in (at.token_ms, at.block_ms, at.rollback_ms)))
    console.print(table)
    if report.against_bare:
        table = Table("context", "bare, ms per token", "ours, ms per token", "overhead, ms", "overhead, %")
        for o in report.against_bare:
            table.add_row(
                str(o.context_tokens),
                *(f"{ms:.3f}" for ms in (o.bare_ms, o.ours_ms, o.overhead_ms)),
                f"{o.overhead_percent:.1f}",
            )
        console.print(table)
