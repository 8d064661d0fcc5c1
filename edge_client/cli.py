"""The command `edge-client`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_client.drafters.memory import parse_bytes
from edge_client.drafters.settings import DeviceSettings, FlashAttention, KvType, Weights
from speculation.pace import Objective

if TYPE_CHECKING:
    from edge_client.client import EdgeClient
    from speculation.sampling import SamplingParams

# Two OpenMP pools that spin on one machine starve each other: a 20 ms step then takes most of a second.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SETTINGS = {"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "OUTRIDER_EDGE", "show_default": True}


class CommandError(click.ClickException):
    """A sentence for the person at the terminal; exit code 1."""


class Size(click.ParamType):  # type: ignore[type-arg]  # older click knows no argument
    """Bytes, written 800MB or 1.5GB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Of what was typed."""
        try:
            return value if isinstance(value, int) else parse_bytes(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.group(context_settings=SETTINGS)
@click.version_option(package_name="outrider")
def main() -> None:
    """Draft on the device: answers from a verifier, with a local drafter riding ahead."""


def _options(*options: Any) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _option(*names: str, **settings: Any) -> Any:
    return click.option(*names, show_envvar=True, **settings)


connection_options = _options(
    _option("--verifier", default="127.0.0.1:50051", help="HOST:PORT of the verifier."),
    _option(
        "--drafter",
        default="none",
        help="A GGUF or ONNX file or folder, hf:ORG/REPO[@REVISION][:QUANTIZATION], demo, ngram, history, ngram+FILE, "
        "or none.",
    ),
    _option("--model", default="", help="Model to ask for.  [default: the verifier's]"),
    _option("--threads", default=1, type=click.IntRange(1), help="CPU threads of the drafter."),
    _option("--tls", is_flag=True, help="Use TLS with the system's certificates."),
    _option(
        "--ssl-ca-certs", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Use TLS; trust these."
    ),
    _option("--insecure", is_flag=True, help="Allow plaintext to another machine."),
)
device_options = _options(
    _option(
        "--context-tokens",
        default=None,
        type=click.IntRange(1),
        help="Longest sequence.  [default: what fits, up to 4096]",
    ),
    _option(
        "--memory-limit", default=None, type=Size(), help="Most that the drafter may use.  [default: what is free]"
    ),
    _option("--offline", is_flag=True, help="Take models of the hub from its cache only."),
    _option(
        "--provider",
        default="cpu",
        metavar="NAME[:KEY=VALUE,...]",
        help="ONNX Runtime's: cpu, cuda, tensorrt, qnn, coreml, directml, openvino, xnnpack; auto measures.",
    ),
    _option("--gpu-layers", default=0, type=click.IntRange(-1), help="llama.cpp's layers on a GPU; -1 for all."),
    _option(
        "--weights",
        default=Weights.MAPPED.value,
        type=click.Choice([weights.value for weights in Weights]),
        help="llama.cpp's: mapped from the file, locked in memory, or read at once.",
    ),
    _option(
        "--kv-type",
        default=KvType.F16.value,
        type=click.Choice([kind.value for kind in KvType]),
        help="llama.cpp's key-value cache.",
    ),
    _option(
        "--flash-attention",
        default=FlashAttention.AUTO.value,
        type=click.Choice([choice.value for choice in FlashAttention]),
        help="llama.cpp's.",
    ),
)
pace_options = _options(
    _option("--pace", default="adaptive", help="How far to ride ahead, and when; unknown names list all."),
    _option(
        "--objective",
        default="latency",
        type=click.Choice([objective.value for objective in Objective]),
        help="Least time, least work for the verifier, or between the two.",
    ),
    _option(
        "--max-draft-duty",
        default=1.0,
        type=click.FloatRange(0.0, 1.0, min_open=True),
        help="Most of the time that may go into drafting; less saves battery.",
    ),
)
sampling_options = _options(
    _option("--temperature", default=0.8, help="0 takes the likeliest token."),
    _option("--top-k", default=0, help="Keep this many of the likeliest tokens; 0 keeps all."),
    _option("--top-p", default=1.0, help="Keep the likeliest tokens up to this share."),
    _option("--min-p", default=0.0, help="Drop tokens below this share of the likeliest."),
    _option("--max-tokens", default=256, type=click.IntRange(1), help="Most tokens to answer."),
    _option("--stop", multiple=True, help="End before this text; may be given several times."),
    _option(
        "--seed", default=None, type=click.IntRange(0, 2**64 - 1), help="Same seed, same words.  [default: random]"
    ),
)


def _take_device(options: dict[str, Any]) -> DeviceSettings:
    """The settings of `device_options`, which are taken out of the command's."""
    return DeviceSettings(
        context_tokens=options.pop("context_tokens"),
        memory_limit_bytes=options.pop("memory_limit"),
        offline=options.pop("offline"),
        gpu_layers=options.pop("gpu_layers"),
        weights=Weights(options.pop("weights")),
        kv_type=KvType(options.pop("kv_type")),
        flash_attention=FlashAttention(options.pop("flash_attention")),
        provider=options.pop("provider"),
    )


def _client(options: dict[str, Any]) -> EdgeClient:
    from edge_client.client import EdgeClient

    try:
        client = EdgeClient(
            options["verifier"],
            options["drafter"],
            model=options["model"],
            pace=options["pace"],
            objective=Objective(options["objective"]),
            threads=options["threads"],
            device=_take_device(options),
            max_draft_duty=options["max_draft_duty"],
            tls=options["tls"],
            ca_certificate=options["ssl_ca_certs"],
            insecure=options["insecure"],
        )
    except ValueError as error:
        raise CommandError(str(error)) from error
    for notice in client.notices:
        click.secho(notice, fg="yellow", err=True)
    return client


def _params(options: dict[str, Any]) -> SamplingParams:
    from speculation.sampling import SamplingError, SamplingParams

    try:
        return SamplingParams(
            temperature=options["temperature"],
            top_k=options["top_k"],
            top_p=options["top_p"],
            min_p=options["min_p"],
            max_tokens=options["max_tokens"],
            stop=options["stop"],
        )
    except SamplingError as error:
        raise CommandError(str(error)) from error


@main.command()
@click.option("--prompt", default=None, help="Text to continue, or - to read it from standard input.")
@click.option("--message", default=None, help="A user's message, put into the target's chat template.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole output as JSON when it is complete.")
@connection_options
@device_options
@pace_options
@sampling_options
def generate(prompt: str | None, message: str | None, as_json: bool, **options: Any) -> None:
    """Answer one prompt and exit. With neither --prompt nor --message, the prompt is standard input."""
    from edge_client.errors import SessionError

    if prompt is not None and message is not None:
        raise click.UsageError("give --prompt or --message, not both")
    question: Any
    if message is not None:
        question = [{"role": "user", "content": message}]
    else:
        question = sys.stdin.read() if prompt in (None, "-") else prompt
    params = _params(options)
    client = _client(options)
    try:
        for chunk in client.stream(question, params, seed=options["seed"]):
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
    finally:
        client.close()


@main.command()
@click.option("--system", default=None, help="System message.")
@connection_options
@device_options
@pace_options
@sampling_options
def chat(system: str | None, **options: Any) -> None:
    """Talk. Words the device had right are green, the verifier's own are plain; an empty line or Ctrl-D ends."""
    from edge_client.errors import SessionError
    from edge_client.terminal import say

    params = _params(options)
    client = _client(options)
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    try:
        while question := _ask():
            messages.append({"role": "user", "content": question})
            try:
                answer = say(client.stream(messages, params, seed=options["seed"]))
            except (SessionError, ValueError) as error:
                messages.pop()
                click.secho(str(error), fg="red", err=True)
                continue
            messages.append({"role": "assistant", "content": answer})
    finally:
        client.close()


def _ask() -> str:
    try:
        return input("> ").strip() if sys.stdin.isatty() else sys.stdin.readline().strip()
    except (EOFError, KeyboardInterrupt):
        return ""


@main.command()
@connection_options
@device_options
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool, **options: Any) -> None:
    """Say what this device has, whether the verifier answers, what is missing, and how to get it."""
    from edge_client.doctor import examine

    findings = examine(device=_take_device(options), **options)
    if as_json:
        import json

        click.echo(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        for finding in findings:
            click.echo(f"{'ok     ' if finding.ok else 'MISSING'}  {finding.what}: {finding.detail}")
    if not all(finding.ok for finding in findings):
        sys.exit(1)


@main.command()
@_option("--drafter", required=True, help="As for the other commands.")
@_option("--threads", default=1, type=click.IntRange(1), help="CPU threads of the drafter.")
@device_options
@click.option("--tokens", default=48, type=click.IntRange(8), help="Single tokens per context.")
@click.option(
    "--against", default="none", type=click.Choice(["none", "bare"]), help="Compare with the runtime's own loop."
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def bench(drafter: str, threads: int, tokens: int, against: str, as_json: bool, **options: Any) -> None:
    """Measure a drafter alone: load time, prefill, ms per token and per block, rollback, memory."""
    from edge_client import bench_report
    from edge_client.drafters.base import DrafterError

    try:
        report = bench_report.run(
            drafter, threads=threads, tokens=tokens, against_bare=against == "bare", settings=_take_device(options)
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
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written, and its agreement, as JSON.")
def export(model: Path, kind: str, quantize: str | None, output: Path, as_json: bool) -> None:
    """Make a drafter of a transformers folder, and say how well it agrees with its source."""
    try:
        from models.export.exporting import export_and_check
    except ImportError as error:
        raise CommandError(f"{error}; exporting needs more: pip install '.[export]' in a clone of Outrider") from error
    try:
        exported = export_and_check(kind, model, output, quantize)
    except ImportError as error:
        raise CommandError(f"{error}; quantizing GGUF needs llama.cpp: pip install '.[llama]'") from error
    except (ValueError, RuntimeError, OSError) as error:
        raise CommandError(str(error)) from error
    if as_json:
        import dataclasses
        import json

        click.echo(json.dumps(dataclasses.asdict(exported), indent=1, default=str))
    else:
        click.echo(str(exported))


@main.group()
def history() -> None:
    """Past answers that `--drafter history` keeps on this device, for drafting."""


@history.command("show")
def show_history() -> None:
    """Where they are kept, and how much."""
    from edge_client.drafters.history_store import HistoryStore

    store = HistoryStore()
    for file in store.files():
        click.echo(f"{file}: {file.stat().st_size / 1024:.0f} KiB of at most {store.limit_bytes // 1024}")
    if not store.files():
        click.echo(f"No past answers in {store.folder}.")


@history.command("erase")
def erase_history() -> None:
    """Delete all of them."""
    from edge_client.drafters.history_store import HistoryStore

    store = HistoryStore()
    try:
        count = store.erase()
    except OSError as error:
        raise CommandError(f"past answers in {store.folder} could not be deleted: {error}") from error
    click.echo(f"Deleted {count} file{'' if count == 1 else 's'} of past answers in {store.folder}.")
