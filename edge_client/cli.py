"""The command `edge-client`."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import click

from edge_client.assistant.cli import serve
from edge_client.chat.cli import chat
from edge_client.drafters.sources.cli import models, pull
from edge_client.settings.options import (
    CommandError,
    connection_options,
    device_options,
    make_client,
    make_params,
    offline_options,
    option,
    pace_options,
    sampling_options,
    take_device,
    take_security,
)
from edge_client.setup.cli import setup
from outrider_cli.config import config_command
from outrider_cli.environment import take_former_names
from outrider_cli.extras import install
from outrider_cli.option_groups import GroupedCommand
from outrider_cli.outputs import OutputFolder

# Two OpenMP pools that spin on one machine starve each other: a 20 ms step then takes most of a second.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# What matters of it is said in sentences.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

SETTINGS = {"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "OUTRIDER_EDGE", "show_default": True}


# Environment names of an earlier version that were not those of their options.
FORMER_NAMES = {
    "OUTRIDER_EDGE_SERVE_MORE_HOSTS": "OUTRIDER_EDGE_SERVE_ALLOWED_HOST",
    "OUTRIDER_EDGE_SERVE_ORIGINS": "OUTRIDER_EDGE_SERVE_CORS_ORIGIN",
    "OUTRIDER_EDGE_SETUP_DRAFTERS": "OUTRIDER_EDGE_SETUP_DRAFTER",
}

# A drafter that computes in Python (a lookup, a translated vocabulary) would else keep a word that has come waiting for
# 5 ms, Python's default, in each of the three threads that it passes through.
SWITCH_INTERVAL_S = 0.0005


@click.group(context_settings=SETTINGS)
@click.version_option(package_name="outrider")
def main() -> None:
    """Draft on the device: answers from a verifier, with a local drafter riding ahead."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    take_former_names(FORMER_NAMES)


main.add_command(serve)
main.add_command(chat)
main.add_command(setup)
main.add_command(pull)
main.add_command(models)


@main.command(cls=GroupedCommand)
@click.option("--message", default=None, help="A user's message, put into the target's chat template.")
@click.option("--system", default="", help="System message before it.")
@click.option("--prompt", default=None, help="Text to continue, without a template; - reads it from standard input.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole output as JSON when it is complete.")
@connection_options
@device_options
@pace_options
@offline_options
@sampling_options
def generate(message: str | None, system: str, prompt: str | None, as_json: bool, **options: Any) -> None:
    """Answer one message and exit. With neither --message nor --prompt, the message is standard input."""
    from edge_client.errors import SessionError
    from edge_client.terminal import ask_at_terminal, noted

    if prompt is not None and message is not None:
        raise click.UsageError("give --prompt or --message, not both")
    if prompt is not None and system:
        raise click.UsageError("a prompt is continued as it is; --system goes with --message")
    question = _question(message, system, prompt)
    params = make_params(options)
    client = make_client(options, ask_at_terminal)
    try:
        for chunk in noted(client.stream(question, params, seed=options["seed"])):
            if not as_json:
                click.echo(chunk.text, nl=False)
                sys.stdout.flush()
            if chunk.output is not None:
                if as_json:
                    import dataclasses
                    import json

                    click.echo(json.dumps(dataclasses.asdict(chunk.output), indent=1))
                else:
                    click.echo()
    except (SessionError, ValueError) as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        if error.errno == errno.EPIPE:  # whoever read has read enough
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or else Python tries again when it leaves
        raise CommandError(f"the answer cannot be written: {error.strerror}") from error
    finally:
        client.close()


def _question(message: str | None, system: str, prompt: str | None) -> Any:
    """A text to continue, or the messages of a chat. Raises click.UsageError."""
    if prompt is not None:
        return sys.stdin.read() if prompt == "-" else prompt
    if message is None:
        if sys.stdin.isatty():
            click.secho("[your message; Ctrl-D on a line of its own ends it]", fg="yellow", err=True)
        message = sys.stdin.read().removesuffix("\n")
        if not message.strip():
            raise click.UsageError("there is no question: give --message or --prompt, or write it to standard input")
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": message}]


@main.command(cls=GroupedCommand)
@connection_options
@device_options
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool, **options: Any) -> None:
    """Say what this device has, whether the verifier answers, what is missing, and how to get it."""
    from edge_client.doctor import examine

    findings = examine(device=take_device(options), security=take_security(options), **options)
    if as_json:
        import json

        click.echo(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        for finding in findings:
            click.echo(f"{'ok   ' if finding.ok else 'FAULT'}  {finding.what}: {finding.detail}")
    if not all(finding.ok for finding in findings):
        sys.exit(1)


@main.command()
@option("--drafter", required=True, help="As for the other commands.")
@option("--threads", default=1, type=click.IntRange(1), help="CPU threads of the drafter.")
@device_options
@click.option("--tokens", default=48, type=click.IntRange(8), help="Single tokens per context.")
@click.option(
    "--against", default="none", type=click.Choice(["none", "bare"]), help="Compare with the runtime's own loop."
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def bench(drafter: str, threads: int, tokens: int, against: str, as_json: bool, **options: Any) -> None:
    """Measure a drafter alone: load time, prefill, ms per token and per block, rollback, memory."""
    from edge_client.bench import report as bench_report
    from edge_client.drafters.base import DrafterError

    try:
        report = bench_report.run(
            drafter, threads=threads, tokens=tokens, against_bare=against == "bare", settings=take_device(options)
        )
    except DrafterError as error:
        raise CommandError(str(error)) from error
    bench_report.show(report, as_json=as_json)


@main.command()
@click.option(
    "--model", required=True, type=click.Path(path_type=Path, exists=True, file_okay=False), help="transformers folder."
)
@click.option("--format", "kind", default="onnx", type=click.Choice(["onnx", "gguf"]), help="For which runtime.")
@click.option(
    "--quantize", default=None, help="none, int8, int4 (onnx), q8_0, q4_k_m, q4_0... (gguf).  [default: 8 bits]"
)
@click.option(
    "--vocabulary", type=click.IntRange(1), help="Keep so many tokens: special ones, bytes, the most used ones."
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Text like what the target writes: its tokens are kept first.",
)
@click.option("--output", required=True, type=OutputFolder(), help="Folder to write.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written, and its agreement, as JSON.")
def export(
    model: Path,
    kind: str,
    quantize: str | None,
    vocabulary: int | None,
    calibration: Path | None,
    output: Path,
    as_json: bool,
) -> None:
    """Make a drafter of a transformers folder, and say how well it agrees with its source."""
    from outrider_models.runtime_build import llama_cpp_install

    if calibration and vocabulary is None:
        raise click.UsageError("--calibration says which tokens to keep; give --vocabulary, how many.")
    try:
        from edge_client.export.exporting import export_and_check
    except ImportError as error:
        raise CommandError(f"{error}; exporting needs more: {install('export')}") from error
    try:
        text = calibration.read_text(encoding="utf-8", errors="replace") if calibration else ""
        exported = export_and_check(kind, model, output, quantize, vocabulary, text)
    except ImportError as error:
        raise CommandError(f"{error}; quantizing GGUF needs llama.cpp: {llama_cpp_install()}") from error
    except (ValueError, RuntimeError, OSError) as error:
        raise CommandError(str(error)) from error
    if as_json:
        import dataclasses
        import json

        click.echo(json.dumps(dataclasses.asdict(exported), indent=1, default=str))
    else:
        click.echo(str(exported))


main.add_command(config_command(main, "chat"))


@main.group()
def history() -> None:
    """Past answers that `--drafter history` keeps on this device, for drafting."""


@history.command("show")
def show_history() -> None:
    """Where they are kept, and how much."""
    from edge_client.drafters.lookup.history_store import HistoryStore

    store = HistoryStore()
    for file in store.files():
        click.echo(f"{file}: {file.stat().st_size / 1024:.0f} KiB of at most {store.limit_bytes // 1024}")
    if not store.files():
        click.echo(f"No past answers in {store.folder}.")


@history.command("erase")
def erase_history() -> None:
    """Delete all of them."""
    from edge_client.drafters.lookup.history_store import HistoryStore

    store = HistoryStore()
    try:
        count = store.erase()
    except OSError as error:
        raise CommandError(f"past answers in {store.folder} could not be deleted: {error}") from error
    click.echo(f"Deleted {count} file{'' if count == 1 else 's'} of past answers in {store.folder}.")
