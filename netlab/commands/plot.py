"""`netlab plot`: the figures of an experiment."""

from __future__ import annotations

from pathlib import Path

import click

from netlab.commands.extras import needs
from outrider_cli.outputs import OutputFolder


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=OutputFolder(), required=True, help="Folder for the figures.")
def plot(source: Path, out: Path) -> None:
    """Draw an experiment as PNG and SVG.

    SOURCE is a folder of `netlab sweep`, its results.parquet, the JSON of `netlab race` or `netlab simulate`, or the
    timeline.json of `netlab timeline`. What is not varied is not drawn.
    """
    with needs("lab"):
        from netlab.experiments import figures, files, results, timeline

    out.mkdir(parents=True, exist_ok=True)
    try:
        if timeline.is_one(source):
            rides, _ = timeline.read(source)
            files.save(timeline.draw(rides), out, source.stem)
            click.echo(f"{out / source.stem}.png, .svg")
            return
        found = results.read(source)
    except (results.ResultsError, timeline.TimelineError) as error:
        raise click.UsageError(f"{error}.") from error
    if not found.complete:
        click.echo("not every cell is finished; these are the figures of those that are", err=True)
    plots = figures.draw(found)
    if not plots:
        raise click.UsageError(
            "there is nothing to draw: no round trip, network or number of devices is varied in these results."
        )
    for each in plots:
        files.save(each.figure, out, each.name)
        click.echo(f"{out / each.name}.png, .svg")
