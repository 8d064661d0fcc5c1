"""`netlab sweep`: a declared grid, simulated or on the real programs."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from netlab.commands.extras import needs
from netlab.commands.options import simulate_or_real
from outrider_cli.outputs import OutputFolder

if TYPE_CHECKING:
    from netlab.experiments.store import Store

GRIDS = Path(__file__).resolve().parents[1] / "grids"
MOST_PLAYS = 100_000  # some minutes
MOST_HOURS = 1.0


def _grid_file(_context: click.Context, _parameter: click.Parameter, value: str) -> Path:
    """A path, or the name of a grid that comes with the laboratory."""
    path, shipped = Path(value), GRIDS / f"{value}.toml"
    if path.is_file():
        return path
    if path.name == value and shipped.is_file():
        return shipped
    names = ", ".join(sorted(file.stem for file in GRIDS.glob("*.toml")))
    raise click.BadParameter(f"there is no file {value!r}, nor a grid of that name; there are {names}.")


@click.command()
@click.argument("grid", callback=_grid_file)
@simulate_or_real
@click.option("--out", type=OutputFolder(), required=True, help="Folder for the results.")
@click.option(
    "--jobs", default=os.cpu_count() or 1, show_default="all CPUs", type=click.IntRange(1), help="Of --simulate."
)
@click.option("--yes", is_flag=True, help="Run a grid that takes long.")
@click.option("--allow-mixed", is_flag=True, help="Add to results of another commit or grid; each row names its own.")
def sweep(grid: Path, simulate: bool, out: Path, jobs: int, yes: bool, allow_mixed: bool) -> None:
    """Run every cell of a grid; GRID is a TOML file, or the name of one that comes with netlab.

    Finished cells are safe: after Ctrl-C or a crash the same command goes on where it was. Ends with status 1 if words
    differ.

    \b
        netlab sweep networks --simulate --out results/networks
        netlab sweep my-grid.toml --real --out results/mine
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # OpenMP pools that spin starve each other
    with needs("demo", "lab"):
        from netlab.experiments import grid as grids
        from netlab.experiments import real, simulated
        from netlab.experiments.rows import REAL, SIMULATED
        from netlab.experiments.store import Store, StoreError

    try:
        wanted = grids.read(grid)
        (simulated if simulate else real).check(wanted)
        if not yes and simulate and (plays := simulated.plays(wanted)) > MOST_PLAYS:
            raise grids.GridError(
                f"this grid has {len(wanted.cells()):,} cells, in which {plays:,} answers are simulated, "
                "paces to choose from included; make it smaller, or run it with --yes"
            )
        if not yes and not simulate and (hours := real.least_hours(wanted)) > MOST_HOURS:
            raise grids.GridError(
                f"this grid has {len(wanted.cells()):,} cells, which may take {hours:.1f} hours on the real programs; "
                "make it smaller, or run it with --yes"
            )
        store = Store(out, wanted, SIMULATED if simulate else REAL, allow_mixed=allow_mixed)
    except (grids.GridError, StoreError) as error:
        raise click.UsageError(f"{error}.") from error
    _run(store, jobs if simulate else None)


def _run(store: Store, jobs: int | None) -> None:
    """Under a progress bar, which is drawn on terminals only. jobs: None for the real programs."""
    from concurrent.futures.process import BrokenProcessPool

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from edge_client.drafters.base import DrafterError
    from edge_client.errors import SessionError
    from netlab.experiments import sweep as sweeps
    from netlab.link_process import LinkProcessError
    from netlab.simulator.device import PaceError
    from netlab.verifier_process import VerifierProcessError

    console = Console()
    total, missing = len(store.cells), len(store.missing())
    if 0 < missing < total:
        console.print(f"{total - missing} of {total} cells are finished already")
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        *(TimeElapsedColumn(), TimeRemainingColumn()),
    )
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("cells", total=total, completed=total - missing)
            if jobs is not None:
                sweeps.simulate(store, jobs, lambda: progress.advance(task))
            else:
                describe = partial(progress.update, task)
                sweeps.run_real(store, lambda: progress.advance(task), lambda what: describe(description=what))
    except KeyboardInterrupt:
        left = len(store.missing())
        console.print(f"{total - left} of {total} cells are finished and safe; the same command goes on from here")
        raise SystemExit(130) from None
    except (
        *(DrafterError, SessionError, LinkProcessError, VerifierProcessError),
        *(PaceError, BrokenProcessPool),
    ) as error:
        raise click.ClickException(f"{error}\nFinished cells are safe; the same command goes on from there.") from error
    same_words = store.merge()
    console.print(f"{total} cells: {store.folder / 'results.parquet'}")
    if not same_words:
        console.print("[red bold]words differ: this is a bug")
        raise SystemExit(1)
