"""Do a thousand things to a link and a verifier under running sessions; every one must end with the right words.

The plan follows from the seed. What the devices are doing at that moment does not: a seed replays the same faults, not
the same microseconds.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from benchmarks import report
from benchmarks.chaos.plan import Fault, plan
from benchmarks.chaos.run import Run


@click.command(context_settings={"show_default": True})
@click.option("--faults", default=1000, type=click.IntRange(1))
@click.option("--seed", default=1, type=int)
@click.option("--devices", default=12, type=click.IntRange(1), help="That ask at once.")
@click.option("--target", default="mock", type=click.Choice(["mock", "demo"]), help="demo: the demo pair, not a mock.")
@click.option("--show-plan", is_flag=True, help="Print the faults, one a line, and do nothing.")
@report.json_option()
def main(faults: int, seed: int, devices: int, target: str, show_plan: bool, json_file: Path | None) -> None:
    """Carry a plan of faults out; exit code 1 if a session ended wrongly or anything is left."""
    planned = plan(seed, faults)
    if show_plan:
        for fault in planned:
            click.echo(json.dumps(fault.as_dict()))
        return
    logging.getLogger("edge_client").setLevel(logging.ERROR)  # some of the drafters are made to fail
    console = Console(stderr=True)
    console.print(f"seed {seed}: {faults} faults, {devices} devices, target {target}", highlight=False)
    began_s = time.perf_counter()
    with Progress(console=console) as progress:
        task = progress.add_task("faults", total=faults)

        def show(fault: Fault) -> None:
            progress.update(task, advance=1, description=f"{fault.kind:9}")

        run = Run(target, devices, seed, show)
        run.carry_out(planned)
    figures = {"seed": seed, "devices": devices, "target": target, **run.figures()}
    figures["seconds"] = round(time.perf_counter() - began_s, 1)
    console.print_json(data=figures)
    report.write(json_file, figures)
    sys.exit(bool(run.problems))


if __name__ == "__main__":
    main()
