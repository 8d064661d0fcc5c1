"""`netlab timeline`: one answer as it happened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from netlab.commands.extras import needs
from netlab.commands.options import simulate_or_real, words
from outrider_cli.outputs import OutputFolder


@click.command()
@simulate_or_real
@click.option("--policies", callback=words, help="One panel each.  [default: sync,server-led,adaptive]")
@click.option("--rtt-ms", default=60.0, type=click.FloatRange(0, 10_000), help="Round trip.")
@click.option("--draft-ms", default=5.0, type=click.FloatRange(0.01, 10_000), help="Time of a guess; for real, least.")
@click.option("--step-ms", default=30.0, type=click.FloatRange(0.01), help="Time of a target step; for real, least.")
@click.option(
    "--acceptance", default=0.85, type=click.FloatRange(0, 1), help="Share of right guesses; --simulate only."
)
@click.option("--tokens", default=64, type=click.IntRange(2, 512), help="Tokens of the answer.")
@click.option("--seed", default=1, type=click.IntRange(0, 2**31), help="Another seed, another answer.")
@click.option("--until-ms", type=click.FloatRange(1), help="Show no more than this.")
@click.option("--out", type=OutputFolder(), required=True, help="Folder for the figure.")
def timeline(simulate: bool, out: Path, until_ms: float | None, **options: Any) -> None:
    """Draw one answer as it happened: who drafted, what was in flight, what was committed.

    Writes timeline.png, timeline.svg, and timeline.json with the events, from which `netlab plot` draws again.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # OpenMP pools that spin starve each other
    with needs("demo", "lab"):
        from edge_client.drafters.base import DrafterError
        from edge_client.errors import SessionError
        from netlab import provenance
        from netlab.experiments import files, rides
        from netlab.experiments import timeline as timelines
        from netlab.link_process import LinkProcessError
        from netlab.simulator.device import PaceError
        from netlab.verifier_process import VerifierProcessError

    options["policies"] = options["policies"] or ("sync", "server-led", "adaptive")
    settings = rides.RideSettings(**options)
    try:
        found = rides.simulated(settings) if simulate else rides.real(settings)
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error
    except (DrafterError, SessionError, LinkProcessError, VerifierProcessError, PaceError) as error:
        raise click.ClickException(str(error)) from error
    out.mkdir(parents=True, exist_ok=True)
    head = {
        "commit": provenance.commit(),
        "date": provenance.today(),
        "hardware": provenance.hardware(),
        "settings": {"mode": "simulated" if simulate else "real", **options},
    }
    timelines.write(found, head, out / "timeline.json")
    files.save(timelines.draw(found, until_ms=until_ms), out, "timeline")
    click.echo(f"{out / 'timeline.png'}, .svg, .json")
