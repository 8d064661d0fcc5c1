"""The command `edge-client setup`."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import click
import platformdirs

from edge_client.options import CommandError, option, take_security

_NOT_ASKED: dict[str, Any] = {"ssl_client_certfile": None, "ssl_client_keyfile": None, "verifier_api_key": ""}


@click.command()
@option("--verifier", "--target", default=None, help="HOST:PORT of the verifier.")
@option("--drafter", "drafters", multiple=True, help="What to draft with; of several, the fastest here is taken.")
@option("--threads", default=1, type=click.IntRange(1), help="CPU threads of the drafter.")
@option("--tls", is_flag=True, help="Use TLS with the system's certificates.")
@option("--ssl-ca-certs", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Use TLS; trust these.")
@option("--insecure", is_flag=True, help="Allow plaintext to another machine.")
@option(
    "--verifier-api-key-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with the key that the verifier knows this device by.",
)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write.  [default: the user's]")
@click.option("--yes", is_flag=True, help="Ask nothing: take the flags and the defaults, replace an old file.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found and written as JSON; implies --yes.")
def setup(
    verifier: str | None,
    drafters: tuple[str, ...],
    threads: int,
    output: Path | None,
    yes: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Ask for what is needed, measure the drafter, check the whole path and write the configuration."""
    from edge_client.client import EdgeClient
    from edge_client.doctor import examine
    from edge_client.drafters.settings import DeviceSettings
    from edge_client.errors import SessionError
    from edge_client.setting_up.trial import ANSWER_TOKENS, QUESTION, best, try_drafter
    from edge_client.user_files import replace_file
    from speculation.sampling import SamplingParams

    quiet = yes or as_json
    file = output or platformdirs.user_config_path("outrider") / "edge-client.yaml"
    settings: dict[str, Any] = {"verifier": verifier or ("127.0.0.1:50051" if quiet else _ask_verifier())}
    if not quiet:
        options["ssl_ca_certs"], options["tls"] = _ask_tls(settings["verifier"], options)
        drafters = drafters or _ask_drafters()
    tried = [try_drafter(spec, threads) for spec in drafters or ("ngram",)]
    settings |= {"drafter": best(tried), "threads": threads}
    settings |= {key.replace("_", "-"): _plain(value) for key, value in options.items() if value}
    if not as_json:
        for one in tried:
            click.echo(f"drafter {one.spec}: {one.detail}")
    security = take_security({**options, **_NOT_ASKED})
    findings = examine(
        verifier=settings["verifier"],
        drafter=settings["drafter"],
        model="",
        threads=threads,
        device=DeviceSettings(),
        security=security,
    )
    answer, trouble = "", ""
    if all(finding.ok for finding in findings):
        try:
            with EdgeClient(settings["verifier"], settings["drafter"], threads=threads, security=security) as client:
                answer = client.generate(QUESTION, SamplingParams(max_tokens=ANSWER_TOKENS)).text
        except (SessionError, ValueError) as error:
            trouble = str(error)
    good = all(finding.ok for finding in findings) and not trouble
    if not quiet and file.exists() and not click.confirm(f"{file} is there already; replace it?"):
        raise CommandError("nothing was written")
    import yaml

    try:
        replace_file(file, yaml.safe_dump(settings, sort_keys=False).encode())
    except OSError as error:
        raise CommandError(f"cannot write {file}: {error}") from error
    if as_json:
        report = {
            "file": str(file),
            "settings": settings,
            "drafters": [dataclasses.asdict(one) for one in tried],
            "findings": [finding._asdict() for finding in findings],
            "answer": answer,
            "trouble": trouble,
        }
        click.echo(json.dumps(report, indent=1))
    else:
        for finding in findings:
            click.echo(f"{'ok     ' if finding.ok else 'MISSING'}  {finding.what}: {finding.detail}")
        click.echo(f"An answer came: {answer!r}" if good else f"No answer yet. {trouble}".rstrip())
        config = f" --config {file}" if output else ""
        click.echo(f"Written to {file}. Now type: edge-client {'chat' if good else 'doctor'}{config}")
    if not good:
        sys.exit(1)


def _ask_verifier() -> str:
    return str(click.prompt("Address of the verifier, HOST:PORT", default="127.0.0.1:50051"))


def _ask_tls(verifier: str, given: dict[str, Any]) -> tuple[Path | None, bool]:
    from edge_client.security import is_loopback

    host = verifier.rpartition(":")[0].strip("[]")
    if given["tls"] or given["ssl_ca_certs"] or given["insecure"] or is_loopback(host):
        return given["ssl_ca_certs"], given["tls"]
    own = click.prompt("Its certificate authority, a PEM file; empty for the system's", default="", show_default=False)
    return (Path(own).expanduser(), False) if own else (None, True)


def _ask_drafters() -> tuple[str, ...]:
    said = click.prompt(
        "Drafter: a GGUF or ONNX file, hf:ORG/REPO, or ngram; of several, with commas between, the fastest is taken",
        default="ngram",
    )
    return tuple(spec.strip() for spec in str(said).split(",") if spec.strip())


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
