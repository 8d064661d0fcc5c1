"""`netlab simulate`: policies compared in a simulation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from netlab.commands.link_options import is_given, link_options, link_settings
from netlab.commands.options import FILE_IN, FILE_OUT, numbers, words
from outrider_cli.extras import install

if TYPE_CHECKING:
    from netlab.simulator.pair import Pair


@click.command()
@click.option("--rtt-ms", callback=numbers, default="0,20,50,100,200,400", help="Round trips; those of a profile.")
@click.option("--alpha", callback=numbers, default="0.85", help="Shares of right guesses.")
@click.option(
    "--shape",
    type=click.Choice(["independent", "heavy"]),
    default="independent",
    help="Whether right guesses come evenly, or in runs with hard places between them.",
)
@click.option("--trace", type=FILE_IN, help="A recorded pair (netlab record), in place of --alpha.")
@click.option(
    "--informativeness", default=0.3, help="How much the drafter's confidence says about --alpha's hits, 0 to 1."
)
@click.option("--draft-ms", callback=numbers, default="5", help="Time to draw one guess.")
@click.option(
    "--feed-share",
    default=0.0,
    help="Time to read one more token, of another branch or of what the verifier wrote, as a share of a guess's.",
)
@click.option(
    "--tip-share",
    type=float,
    help="Time to draw at one more end of a tree in the same evaluation, of up to four, as a share of a guess's.  "
    "[default: one end at a time]",
)
@click.option("--step-ms", callback=numbers, default="30", help="Time of a target step.")
@click.option("--per-position-ms", default=0.0, help="What each position adds to a step.")
@link_options
@click.option(
    "--policies", callback=words, help="Policies to compare; unknown ones list all.  [default: the main ones]"
)
@click.option("--answers", default=24, help="Answers per policy and condition.")
@click.option("--tokens", default=128, help="Tokens of an answer.")
@click.option("--devices", default=1, help="How many answers run at a time.")
@click.option("--verifiers", default=1, help="How many verifiers they share.")
@click.option("--seed", default=1, help="Same seed, same figures.")
@click.option("--json", "json_file", type=FILE_OUT, help="Write the figures here.")
def simulate(json_file: Path | None, **options: Any) -> None:
    """Compare policies in a simulation of device, link and verifier.

    The product's own pace, line and acceptance code runs; drafter and target are described by figures or recorded:

    \b
        netlab simulate --alpha 0.75,0.85 --draft-ms 2,5,12
        netlab simulate --trace pair.jsonl --policies server-led,best-fixed,oracle
        netlab simulate --profile lte
    """
    import json

    from rich.console import Console

    try:
        from netlab.simulator import policies, report
    except ModuleNotFoundError as error:
        raise click.ClickException(f"the simulator needs {error.name}: {install('lab')}") from error
    from netlab.console import print_whole
    from netlab.simulator.recording import RecordingError
    from netlab.simulator.sweep import Grid

    console = Console()
    context = click.get_current_context()
    rtts_ms = options["rtt_ms"] if is_given(context, "rtt_ms") else None
    if rtts_ms is not None and (is_given(context, "delay_up_ms") or is_given(context, "delay_down_ms")):
        raise click.UsageError("--rtt-ms is halved each way; leave it or --delay-up-ms and --delay-down-ms out.")
    network = link_settings(context, None if rtts_ms is None else 0.0)
    if rtts_ms is None and network.rtt_ms == 0 and not options["profile"]:
        rtts_ms = options["rtt_ms"]
    try:
        grid = Grid(
            pairs=_pairs(context, options),
            rtts_ms=rtts_ms,
            drafts_ms=options["draft_ms"],
            steps_ms=options["step_ms"],
            policies=options["policies"] or policies.DEFAULT,
            answers=options["answers"],
            tokens=options["tokens"],
            seed=options["seed"],
            network=network,
            per_position_ms=options["per_position_ms"],
            feed_share=options["feed_share"],
            tip_share=options["tip_share"],
            devices=options["devices"],
            verifiers=options["verifiers"],
        )
    except (RecordingError, ValueError) as error:
        raise click.UsageError(f"{error}.") from error
    rows = report.run(grid, console)
    print_whole(console, report.table(rows))
    if json_file is not None:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
        settings["policies"] = list(grid.policies)
        json_file.write_text(json.dumps(report.as_json(rows, settings), indent=1) + "\n")
        console.print(f"figures written to {json_file}")
    if not all(row.as_json()["same_words"] for row in rows):
        raise SystemExit(1)


def _pairs(context: click.Context, options: dict[str, Any]) -> list[Pair]:
    from netlab.simulator import pair, recording
    from netlab.simulator.sweep import GridError

    if options["trace"] is None:
        make = pair.heavy_headed if options["shape"] == "heavy" else pair.independent
        return [make(alpha, options["informativeness"]) for alpha in options["alpha"]]
    for name in ("alpha", "shape", "informativeness"):
        if is_given(context, name):
            raise GridError(f"a recorded pair has its own hits; leave --{name} out beside --trace")
    return [recording.read(options["trace"]).pair(options["trace"].stem)]
