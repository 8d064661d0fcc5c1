"""`netlab report`: an experiment as one page."""

from __future__ import annotations

from pathlib import Path

import click

from netlab.commands.extras import needs
from netlab.commands.options import FILE_OUT


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=FILE_OUT, default=Path("report.html"), help="The page.")
def report(source: Path, out: Path) -> None:
    """Write an experiment as one HTML page that needs nothing else: figures, tables, and where they come from.

    SOURCE is what `netlab plot` takes; a timeline.json in a sweep's folder goes in too.
    """
    with needs("lab"):
        from netlab.experiments import page, results, timeline

    try:
        found = results.read(source)
        file = source / "timeline.json"
        rides = timeline.read(file)[0] if file.is_file() else []
    except (results.ResultsError, timeline.TimelineError) as error:
        raise click.UsageError(f"{error}.") from error
    out.write_text(page.page(found, rides), encoding="utf-8")
    click.echo(str(out))
