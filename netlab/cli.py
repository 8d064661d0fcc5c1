"""The `netlab` command. Imports inside the commands keep `netlab --help` fast."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from netlab.link import Link
    from netlab.simulator.pair import Pair

MAX_PORT = 65535


def address(value: str) -> tuple[str, int]:
    """Split HOST:PORT at its last colon; brackets around an IPv6 address are taken off."""
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or int(port) > MAX_PORT:
        raise click.BadParameter(f"{value!r} is not of the form HOST:PORT, for example 127.0.0.1:50051.")
    return host.strip("[]"), int(port)


def numbers(_context: click.Context, parameter: click.Parameter, value: str) -> tuple[float, ...]:
    """Split a list of numbers at its commas."""
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is no list of numbers, such as {parameter.default}.", param=parameter
        ) from None


def words(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Split a list of names at its commas; none gives none."""
    return tuple(part.strip() for part in value.split(",")) if value else ()


FILE_OUT = click.Path(path_type=Path, dir_okay=False, writable=True)
FILE_IN = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.group(
    context_settings={
        "auto_envvar_prefix": "OUTRIDER_NETLAB",
        "help_option_names": ["-h", "--help"],
        "show_default": True,
        "max_content_width": 120,
    }
)
@click.version_option(package_name="outrider")
def main() -> None:
    """The network-latency laboratory of Outrider."""


@main.command()
@click.option(
    "--listen",
    type=address,
    metavar="HOST:PORT",
    default="127.0.0.1:0",
    show_envvar=True,
    help="Where to accept connections; port 0 takes a free one.",
)
@click.option(
    "--to",
    "target",
    type=address,
    metavar="HOST:PORT",
    required=True,
    envvar="OUTRIDER_NETLAB_LINK_TO",
    show_envvar=True,
    help="Where they lead to.",
)
@click.option(
    "--rtt-ms",
    type=click.FloatRange(0, 120_000),
    default=50.0,
    show_envvar=True,
    help="Round trip, half of it each way.",
)
@click.option("--jitter-ms", default=0.0, show_envvar=True, help="Most extra delay of a burst; never reorders.")
@click.option("--up-kbps", default=0.0, show_envvar=True, help="Bandwidth towards the target; 0 for no limit.")
@click.option("--down-kbps", default=0.0, show_envvar=True, help="Bandwidth back; 0 for no limit.")
@click.option("--loss", default=0.0, show_envvar=True, help="Share of packets lost.")
@click.option("--loss-stall-ms", default=200.0, show_envvar=True, help="How long a loss holds up its connection.")
@click.option("--seed", default=0, show_envvar=True, help="Of jitter and losses.")
def link(listen: tuple[str, int], target: tuple[str, int], rtt_ms: float, **settings: float) -> None:
    """Emulate a link between any two programs.

    Runs until Ctrl-C, then prints what the link carried. Point the client at --listen instead of the server:

    \b
        netlab link --listen 127.0.0.1:6000 --to 127.0.0.1:50051 --rtt-ms 80 --jitter-ms 10
    """
    import asyncio

    from netlab.event_loop import precise_event_loop, wake_promptly
    from netlab.link import Link, LinkSettings

    try:
        behaviour = LinkSettings(delay_up_ms=rtt_ms / 2, delay_down_ms=rtt_ms / 2, **settings)  # type: ignore[arg-type]
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error
    wake_promptly()
    with asyncio.Runner(loop_factory=precise_event_loop) as runner:
        runner.run(_run(Link(target, behaviour, listen=listen), listen, target))


async def _run(link: Link, listen: tuple[str, int], target: tuple[str, int]) -> None:
    """Run a link until SIGINT or SIGTERM."""
    import asyncio
    import signal

    stopped = asyncio.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_number, stopped.set)
    try:
        await link.start()
    except OSError as error:
        raise click.ClickException(f"cannot listen on {listen[0]}:{listen[1]}: {error}") from error
    click.echo(f"{listen[0]}:{link.port} leads to {target[0]}:{target[1]}; Ctrl-C ends it")
    await stopped.wait()
    counters = link.counters()
    await link.stop()
    click.echo(str(counters))


@main.command()
@click.option("--rtt-ms", callback=numbers, default="0,20,50,100,200,400", help="Round trips.")
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
@click.option("--step-ms", callback=numbers, default="30", help="Time of a target step.")
@click.option("--per-position-ms", default=0.0, help="What each position adds to a step.")
@click.option("--jitter-ms", default=0.0, help="Most extra delay of a message, each way.")
@click.option("--up-kbps", default=0.0, help="Bandwidth towards the verifier; 0 for no limit.")
@click.option("--down-kbps", default=0.0, help="Bandwidth back; 0 for no limit.")
@click.option("--rtt-trace", type=FILE_IN, help="CSV of time_ms,rtt_ms to replay, in place of --rtt-ms.")
@click.option(
    "--policies", callback=words, help="Policies to compare; unknown ones list all.  [default: the main ones]"
)
@click.option("--answers", default=24, help="Answers per policy and condition.")
@click.option("--tokens", default=128, help="Tokens of an answer.")
@click.option("--devices", default=1, help="How many of the answers share one verifier at a time.")
@click.option("--seed", default=1, help="Same seed, same figures.")
@click.option("--json", "json_file", type=FILE_OUT, help="Write the figures here.")
def simulate(json_file: Path | None, **options: Any) -> None:
    """Compare policies in a simulation of device, link and verifier.

    The product's own pace, line and acceptance code runs; drafter and target are described by figures or recorded:

    \b
        netlab simulate --alpha 0.75,0.85 --draft-ms 2,5,12
        netlab simulate --trace pair.jsonl --policies server-led,best-fixed,oracle
    """
    import json

    from rich.console import Console

    try:
        from netlab.simulator import policies, report, rtt_trace
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"the simulator needs {error.name}: pip install '.[lab]' in a clone of Outrider"
        ) from error
    from netlab.simulator.recording import RecordingError
    from netlab.simulator.sweep import Grid, GridError, Network

    console = Console()
    context = click.get_current_context()
    rtt_given = context.get_parameter_source("rtt_ms") is not click.core.ParameterSource.DEFAULT
    try:
        trace = rtt_trace.read(options["rtt_trace"]) if options["rtt_trace"] else None
        if trace is not None and rtt_given:
            raise GridError("--rtt-trace says the round trips itself; leave --rtt-ms out")
        grid = Grid(
            pairs=_pairs(context, options),
            rtts_ms=(trace.median_ms,) if trace else options["rtt_ms"],
            drafts_ms=options["draft_ms"],
            steps_ms=options["step_ms"],
            policies=options["policies"] or policies.default(),
            answers=options["answers"],
            tokens=options["tokens"],
            seed=options["seed"],
            network=Network(options["jitter_ms"], options["up_kbps"], options["down_kbps"], trace),
            per_position_ms=options["per_position_ms"],
            devices=options["devices"],
        )
    except (rtt_trace.TraceError, RecordingError, ValueError) as error:
        raise click.UsageError(f"{error}.") from error
    rows = report.run(grid, console)
    console.print(report.table(rows))
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
    default = click.core.ParameterSource.DEFAULT
    for name in ("alpha", "shape", "informativeness"):
        if context.get_parameter_source(name) is not default:
            raise GridError(f"a recorded pair has its own hits; leave --{name} out beside --trace")
    return [recording.read(options["trace"]).pair(options["trace"].stem)]


@main.command()
@click.option("--target", required=True, help="Target model: a local folder or a hub id.")
@click.option("--drafter", required=True, help="GGUF file or ONNX folder.")
@click.option(
    "--prompts",
    type=FILE_IN,
    required=True,
    help="Lines of text, or .jsonl (also .xz) with messages or prompt in each line.",
)
@click.option("--count", default=32, type=click.IntRange(1), help="How many answers.")
@click.option("--tokens", default=128, type=click.IntRange(1), help="Tokens of an answer.")
@click.option("--temperature", default=0.8, type=click.FloatRange(0), help="0 takes the likeliest token.")
@click.option("--seed", default=1000, type=click.IntRange(0), help="Of the first answer; each has its own.")
@click.option("--stop-at-end", is_flag=True, help="End answers where the target does, instead of writing on.")
@click.option("--threads", default=1, type=click.IntRange(1), help="CPU threads of target and drafter.")
@click.option("--out", type=FILE_OUT, required=True, help="Where to write the recording.")
def record(target: str, drafter: str, prompts: Path, threads: int, out: Path, **options: Any) -> None:
    """Record where a real drafter guesses a real target right, for `netlab simulate --trace`.

    \b
        netlab record --target models/demo/target --drafter models/demo/drafter-onnx \\
            --prompts dialogues.jsonl.xz --out pair.jsonl
    """
    from rich.progress import track

    from edge_client.drafters import load_drafter
    from edge_client.drafters.base import DrafterError
    from netlab import provenance
    from netlab.simulator import record as recorder
    from netlab.simulator import recording

    settings = recorder.RecordSettings(**options)
    try:
        conversations = recorder.conversations(prompts, settings.seed)
        loaded = load_drafter(drafter, threads=threads)
    except (DrafterError, recorder.PromptsError) as error:
        raise click.ClickException(str(error)) from error
    if loaded is None:
        raise click.UsageError("without a drafter there is nothing to record; name a GGUF file or an ONNX folder.")

    from transformers.utils import logging  # late, with what needs it: seconds

    from cloud_verifier.engines.torch_engine import load
    from cloud_verifier.engines.torch_engine.load import ModelError
    from cloud_verifier.text import Codec, TextError

    logging.disable_progress_bar()
    try:
        codec = Codec(target)
        if codec.fingerprint != loaded.info.vocabulary_fingerprint:
            raise click.UsageError(
                "the drafter's vocabulary is not the target's; every guess would be of another text."
            )
        engine = load(target, strict=False, max_sequences=1, threads=threads)
        recorded = recorder.record(engine, codec, loaded, conversations, settings)
        answers = list(track(recorded, "recording", settings.count, transient=True))
    except (ModelError, DrafterError, TextError) as error:
        raise click.ClickException(str(error)) from error
    head = {
        "target": engine.info.name,
        "drafter": loaded.info.name,
        "prompts": prompts.name,
        "temperature": settings.temperature,
        "stop_at_end": settings.stop_at_end,
        "commit": provenance.commit(),
        "date": provenance.today(),
    }
    recording.write(recording.Recording(answers, head), out)
    right, total = sum(sum(a.hits) for a in answers), sum(len(a.hits) for a in answers)
    click.echo(f"{len(answers)} answers, {total} tokens, {right / total:.3f} of the guesses right: {out}")


if __name__ == "__main__":
    main()
