"""`netlab race`: policies compared on the real programs, over an emulated link."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from netlab.commands.options import FILE_OUT, numbers, words


@click.command()
@click.option("--rtt-ms", callback=numbers, default="0,20,50,100,200", help="Round trips.")
@click.option(
    "--profile", "profiles", callback=words, help="Named networks, or files that describe one; in place of --rtt-ms."
)
@click.option(
    "--policies", callback=words, help="Policies beside streaming.  [default: sync,pipelined,server-led,adaptive]"
)
@click.option("--drafter", default="demo", help="GGUF file, ONNX folder, demo, garbage (random ids) or none.")
@click.option(
    "--draft-ms", default=0.0, type=click.FloatRange(0, 10_000), help="Least time of a guess: emulates a slower device."
)
@click.option(
    "--draft-model",
    default="demo",
    help="Beside the target, for the policy co-located; as `cloud-verifier serve` has it.",
)
@click.option(
    "--target",
    default="demo",
    type=click.Path(path_type=Path),
    help="Target model: a local folder, a hub id or demo.",
)
@click.option(
    "--step-ms", default=30.0, type=click.FloatRange(0), help="Least time of a target step: emulates its size."
)
@click.option("--temperature", default=0.8, type=click.FloatRange(0), help="0 takes the likeliest token.")
@click.option("--prompts", default=6, type=click.IntRange(1, 1000), help="How many; used up, they have new seeds.")
@click.option("--prompt-set", default="demo", help="demo, tasks (six kinds of work) or a TOML file.")
@click.option("--control", is_flag=True, help="Stream twice: what do random losses and jitter alone make of a ratio?")
@click.option("--max-tokens", default=96, type=click.IntRange(2, 2048), help="Tokens of an answer.")
@click.option("--seed", default=7, type=click.IntRange(0, 2**63), help="Same seed, same words.")
@click.option("--json", "json_file", type=FILE_OUT, help="Write the figures here.")
def race(json_file: Path | None, target: Path, step_ms: float, **options: Any) -> None:
    """Race the policies on the real programs: verifier, drafter and, between them, an emulated link.

    The policy "co-located" is what a server does alone: it streams, and drafts with a small model beside the target.

    "sync" is the best draft length of a sweep, made anew for every network. Ends with status 1 if words differ.

    \b
        netlab race --rtt-ms 0,50,200 --json race.json
        netlab race --rtt-ms 50 --drafter garbage --policies adaptive,server-led
    """
    import json
    import os

    # Two OpenMP pools that spin on one machine starve each other.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from rich.console import Console

    from edge_client.drafters.base import DrafterError
    from edge_client.errors import SessionError
    from netlab import prompts as prompt_sets
    from netlab import provenance
    from netlab.console import print_whole
    from netlab.experiments import conditions as networks
    from netlab.experiments import race as races
    from netlab.experiments import race_table
    from netlab.link_process import LinkProcessError
    from netlab.race import CO_LOCATED
    from netlab.verifier_process import VerifierProcessError
    from speculation.pace import policies

    console = Console()
    context = click.get_current_context()
    rtt_given = context.get_parameter_source("rtt_ms") is not click.core.ParameterSource.DEFAULT
    if options["profiles"] and rtt_given:
        raise click.UsageError("a profile has its own round trip; leave --rtt-ms out beside --profile.")
    try:
        if options["profiles"]:
            conditions = networks.of_profiles(options["profiles"])
        else:
            conditions = networks.of_rtts(options["rtt_ms"])
        wanted = options["policies"] or races.DEFAULT_POLICIES
        for name in wanted:
            if name != CO_LOCATED:
                policies.find(name)
        asked = prompt_sets.find(options["prompt_set"]).first(options["prompts"])
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error
    settings = races.RaceSettings(
        prompts=asked,
        policies=wanted,
        ignore_eos=options["prompt_set"] == prompt_sets.DEMO,
        **{name: options[name] for name in ("max_tokens", "temperature", "seed", "drafter", "draft_ms", "control")},
    )
    try:
        draft_model = options["draft_model"] if CO_LOCATED in wanted else ""
        rows = _run(console, target, step_ms, settings, conditions, draft_model)
    except (DrafterError, SessionError, LinkProcessError, VerifierProcessError) as error:
        raise click.ClickException(str(error)) from error
    print_whole(console, race_table.table(rows))
    if json_file is not None:
        shown = {"target": str(target), "step_ms": step_ms, **options}
        shown["policies"] = list(settings.lanes)
        figures = {
            "commit": provenance.commit(),
            "date": provenance.today(),
            "hardware": provenance.hardware(),
            "settings": shown,
            "rows": rows,
        }
        json_file.write_text(json.dumps(figures, indent=1) + "\n")
        console.print(f"figures written to {json_file}")
    if not all(row["same_words"] for row in rows):
        console.print("[red bold]words differ: this is a bug")
        raise SystemExit(1)


def _run(
    console: Any, target: Path, step_ms: float, settings: Any, conditions: Any, draft_model: str
) -> list[dict[str, Any]]:
    """Under a progress bar, which is drawn on terminals only."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from netlab.experiments import rig
    from netlab.experiments.race import race

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting the verifier", total=settings.answers(len(conditions)))

        def done(what: str) -> None:
            progress.update(task, advance=1, description=what)

        with rig.start(target, step_ms, draft_model) as running:
            return list(race(running, settings, conditions, done))
