"""The command `edge-client setup`."""

from __future__ import annotations

import dataclasses
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import platformdirs

from edge_client.settings.options import CommandError, option, take_security
from outrider_cli.extras import install

if TYPE_CHECKING:
    from edge_client.setup.drafter_choice import Choice
    from edge_client.setup.end_to_end_check import Checked
    from edge_client.setup.measurement import Measuring
    from edge_client.setup.speed_race import Race

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command()
@option("--verifier", "--target", default=None, help="HOST:PORT of the verifier.")
@option("--model", default="", help="Model to ask for.  [default: the verifier's]")
@option("--drafter", multiple=True, help="Measure this one and no others; of several, the best here is taken.")
@click.option(
    "--look-in",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Look for models here, too.",
)
@option("--threads", default=None, type=click.IntRange(1), help="CPU threads of the drafter.  [default: measured]")
@option(
    "--provider", default="cpu", metavar="NAME[:KEY=VALUE,...]", help="ONNX Runtime's, for ONNX files; auto measures."
)
@option(
    "--gpu-layers", default=0, type=click.IntRange(-1), help="llama.cpp's layers on a GPU, for GGUF files; -1 for all."
)
@option("--tls", is_flag=True, help="Use TLS with the system's certificates.")
@option("--ssl-ca-certs", type=_FILE, help="Use TLS; trust these.")
@option("--ssl-client-certfile", type=_FILE, help="Certificate to show to a verifier that asks for one.")
@option("--ssl-client-keyfile", type=_FILE, help="Its private key.")
@option("--insecure", is_flag=True, help="Allow plaintext to another machine.")
@option(
    "--verifier-api-key",
    envvar="OUTRIDER_VERIFIER_API_KEY",
    default="",
    show_default=False,
    help="Key that the verifier knows this device by; it is not written down.",
)
@option("--verifier-api-key-file", type=_FILE, help="File with that key and nothing else.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write.  [default: the user's]")
@click.option("--no-measure", is_flag=True, help="Do not race the drafter against streaming.")
@click.option("--yes", is_flag=True, help="Ask nothing: take the flags and the defaults, replace an old file.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found and written as JSON; implies --yes.")
def setup(
    verifier: str | None,
    model: str,
    drafter: tuple[str, ...],
    look_in: tuple[Path, ...],
    threads: int | None,
    provider: str,
    gpu_layers: int,
    output: Path | None,
    no_measure: bool,
    yes: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Find the verifier, measure what this device could draft with, check the whole path, write the configuration.

    Asks only for what it cannot find out. Nothing is downloaded unless you say so.
    """
    import yaml
    from rich.console import Console

    from edge_client.link.reachability import Refusal
    from edge_client.setup import connection, drafter_choice, previous_settings, tables
    from edge_client.setup.drafter_trial import Accelerator
    from edge_client.setup.end_to_end_check import check
    from edge_client.setup.measurement import Measuring, choose

    asking = not (yes or as_json)
    file = output or platformdirs.user_config_path("outrider") / "edge-client.yaml"
    before = previous_settings.read(file)
    known = str(before.get("verifier") or f"127.0.0.1:{connection.PORT}")
    address = verifier or (connection.ask_address(known) if asking else known)
    context = click.get_current_context()
    again = previous_settings.unsaid(before, context, "provider", "gpu_layers")
    key_is_flag = bool(options["verifier_api_key"] or options["verifier_api_key_file"])
    if address == before.get("verifier"):
        options |= previous_settings.way_in(before, options)
        again |= previous_settings.unsaid(before, context, "model")
    model = again.get("model", model)
    key_file, kept_key = options["verifier_api_key_file"], file.with_name(f"{file.stem}.api-key")
    in_the_open = bool(options["verifier_api_key"]) and options["verifier_api_key"] == before.get("verifier-api-key")
    security = take_security(dict(options))
    console = Console(highlight=False, quiet=as_json)
    way = connection.Way(address, model, security, kept_key if in_the_open else key_file)
    way, answer = connection.connect(way, kept_key, asking=asking, any_address=key_is_flag)
    accelerator = Accelerator(again.get("provider", provider), again.get("gpu_layers", gpu_layers))
    measuring = Measuring(console, threads, accelerator)
    trouble = answer.sentence if isinstance(answer, Refusal) else measuring.ask(way.verifier, model, way.security)
    if measuring.reference is not None:
        console.print(tables.told_of(measuring.reference), soft_wrap=True)
    elif asking:
        click.echo(f"{trouble}\n{tables.UNJUDGED}")
    choice = drafter_choice.named(measuring, drafter) if drafter else drafter_choice.found(measuring, look_in)
    if drafter and not choice.tried:  # another drafter, or none, is not what was asked for
        reasons = "; ".join(f"{one.what}: {one.why}" for one in choice.left_out)
        raise CommandError(f"no drafter that was named can be used ({reasons}); nothing was written")
    if asking and choice.on_hub:
        drafter_choice.offer_downloads(measuring, choice)
    first = None if no_measure else choose(choice.tried)
    raced = measuring.race(way, first) if first else None
    if first and raced:
        choice.tried = measuring.correct(raced, first, choice.tried)
    if asking and not drafter:
        chosen = drafter_choice.ask_which(console, measuring, choice)
    else:
        chosen = choose(choice.tried)
        if not as_json:
            tables.show(console, tables.in_order(choice.tried, chosen), choice.left_out, measuring.reference)
    spec = chosen.spec if chosen else "none"
    if raced and (not chosen or raced.drafter != spec):
        raced = measuring.race(way, chosen) if chosen else None
    with console.status("checking the whole path"):
        threads = chosen.threads if chosen else 1
        checked = check(way, spec, threads, accelerator.device, measuring.reference, raced)
    settings = way.settings | {"drafter": spec}
    if chosen:
        settings |= {"threads": threads, **accelerator.settings}
    settings |= previous_settings.kept(before, context)
    if asking and file.exists() and not click.confirm(f"{file} is there already; write these settings into it?"):
        raise CommandError("nothing was written")
    new_key = (way.key_file, way.security.api_key) != (key_file, security.api_key)
    if way.key_file is not None and new_key:
        _write(way.key_file, way.security.api_key.encode())
    _write(file, yaml.safe_dump(settings, sort_keys=False).encode())
    if as_json:
        click.echo(json.dumps(_report(file, settings, measuring, choice, checked, raced, trouble), indent=1))
    else:
        tables.show_check(checked, raced, trouble)
        if way.key_file is not None and new_key:
            click.echo(f"The key was written to {way.key_file}, which only you can read.")
        click.echo(f"Written to {file}. {_next(checked.good, file if output else None)}")
    if not checked.good:
        sys.exit(1)


def _write(file: Path, content: bytes) -> None:
    from outrider_models.user_files import replace_file

    try:
        replace_file(file, content)
    except OSError as error:
        raise CommandError(f"cannot write {file}: {error}") from error


def _next(good: bool, named: Path | None) -> str:
    """What to type. named: the file, if it is not where the commands look for it by themselves."""
    config = f" --config {named}" if named else ""
    if not good:
        return f"Now type: edge-client doctor{config}"
    if find_spec("prompt_toolkit") is None:
        talk = f"edge-client generate{config} --message 'Hello' (edge-client chat needs {install('chat')})"
    else:
        talk = f"edge-client chat{config}"
    extra = "" if find_spec("uvicorn") else f" (needs {install('serve')})"
    return f"Now type: {talk}; for apps and the browser: edge-client serve{config}{extra}"


def _report(
    file: Path,
    settings: dict[str, object],
    measuring: Measuring,
    choice: Choice,
    checked: Checked,
    raced: Race | None,
    trouble: str,
) -> dict[str, object]:
    reference = measuring.reference
    return {
        "file": str(file),
        "settings": settings,
        "verifier": reference
        and {"model": reference.model, "rtt_ms": reference.rtt_ms, "ms_per_token": reference.step_ms},
        "drafters": [dataclasses.asdict(one) for one in choice.tried],
        "left_out": [one._asdict() for one in choice.left_out],
        "on_hub": [str(model) for model in choice.on_hub],
        "findings": [finding._asdict() for finding in checked.findings],
        "answers": [answer.text for answer in checked.answers],
        "ms_per_token": checked.ms_per_token if checked.answers else None,
        "guessed": checked.guessed if checked.answers else None,
        "same_words": checked.same_words,
        "race": raced
        and {
            "answers": len(raced.drafted),
            "streamed_ms_per_token": raced.streamed_ms,
            "drafted_ms_per_token": raced.drafted_ms,
            "speed_up": raced.speed_up,
            "speed_up_quartiles": raced.spread,
        },
        "trouble": trouble or checked.trouble,
    }
