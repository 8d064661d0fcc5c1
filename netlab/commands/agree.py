"""`netlab agree`: the simulator held against the real programs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from netlab.commands.extras import needs
from netlab.commands.options import FILE_OUT, numbers, words

MEDIAN_GOAL, WORST_GOAL = 0.05, 0.10


@click.command()
@click.option("--rtt-ms", "rtts_ms", callback=numbers, default="0,20,50,100,200", help="Round trips.")
@click.option("--draft-ms", "drafts_ms", callback=numbers, default="2,8", help="Least times of a guess.")
@click.option(
    "--policies", callback=words, help="With streaming.  [default: streaming,sync:8,server-led,adaptive:1,adaptive]"
)
@click.option("--step-ms", default=30.0, type=click.FloatRange(0), help="Least time of a target step.")
@click.option("--prompts", default=4, type=click.IntRange(1, 12), help="How many prompts.")
@click.option("--tokens", default=96, type=click.IntRange(8, 512), help="Tokens of an answer.")
@click.option("--temperature", default=0.8, type=click.FloatRange(0), help="0 takes the likeliest token.")
@click.option("--seed", default=7, type=click.IntRange(0, 2**63), help="Of the first prompt.")
@click.option("--target", default="demo", help="Target model: a local folder, a hub id or demo.")
@click.option("--drafter", default="demo", help="GGUF file, ONNX folder or demo.")
@click.option("--json", "json_file", type=FILE_OUT, help="Write the figures here.")
def agree(json_file: Path | None, step_ms: float, **options: Any) -> None:
    """Run the same answers on the real programs and in the simulator, and tell how far apart they are.

    Ends with status 1 if the time per token differs by more than 5 % in the median or 10 % in any cell. Give it a
    machine that does nothing else.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # OpenMP pools that spin starve each other
    import json

    with needs("demo", "lab"):
        from rich.console import Console

        from edge_client.drafters.base import DrafterError
        from edge_client.errors import SessionError
        from netlab import provenance
        from netlab.console import print_whole
        from netlab.experiments import agreement
        from netlab.link_process import LinkProcessError
        from netlab.simulator.device import PaceError
        from netlab.verifier_process import VerifierProcessError

    console = Console()
    options["policies"] = options["policies"] or agreement.POLICIES
    try:
        settings = agreement.AgreementSettings(**options)
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error
    with needs("demo", "lab"):
        from cloud_verifier.engines.base import ModelError  # late: torch takes seconds
        from cloud_verifier.serving.text_codec import TextError

    try:
        measured, rows = _run(console, settings, step_ms)
    except (
        *(DrafterError, SessionError, LinkProcessError, VerifierProcessError),
        *(ModelError, TextError, PaceError),
    ) as error:
        raise click.ClickException(str(error)) from error
    median, worst = agreement.summary(rows)
    print_whole(console, _table(rows))
    console.print(
        f"time per token, simulated against real: {median:.1%} apart in the median, {worst:.1%} in the worst of "
        f"{len(rows)} cells"
    )
    if json_file is not None:
        figures = {
            "commit": provenance.commit(),
            "date": provenance.today(),
            "hardware": provenance.hardware(),
            "settings": {"step_ms": step_ms, **options},
            "measured": measured.as_json(),
            "difference": {"median": round(median, 4), "worst": round(worst, 4)},
            "rows": [row.as_json() for row in rows],
        }
        json_file.write_text(json.dumps(figures, indent=1) + "\n")
        console.print(f"figures written to {json_file}")
    if median > MEDIAN_GOAL or worst > WORST_GOAL:
        raise SystemExit(1)


def _run(console: Any, settings: Any, step_ms: float) -> tuple[Any, list[Any]]:
    """Under a progress bar, which is drawn on terminals only."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from transformers.utils import logging

    from netlab.experiments import agreement, rig

    logging.disable_progress_bar()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("recording the answers", total=settings.answers())
        recorded = agreement.record(settings)
        progress.update(task, description="the real programs")
        with rig.start(Path(settings.target), step_ms) as running:
            cells = list(agreement.measure(running, settings, lambda: progress.advance(task)))
        progress.update(task, description="the simulator")
        measured = agreement.Figures.of(cells)
        return measured, agreement.compare(cells, recorded, measured)


def _table(rows: list[Any]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=0, collapse_padding=True)
    for name in ("draft ms", "RTT ms", "policy", "real ms/tok", "simulated", "apart", "real fwd/tok", "simulated"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for row in rows:
        apart = f"{row.difference:+.1%}"
        table.add_row(
            *(f"{row.draft_ms:g}", f"{row.rtt_ms:g}", row.policy),
            *(f"{row.real_ms_per_token:.2f}", f"{row.simulated_ms_per_token:.2f}"),
            f"[red]{apart}" if abs(row.difference) > WORST_GOAL else apart,
            *(f"{row.real_forwards_per_token:.3f}", f"{row.simulated_forwards_per_token:.3f}"),
        )
    return table
