"""The command `edge-client serve`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from edge_client.settings.options import (
    CommandError,
    connection_options,
    device_options,
    make_client,
    offline_options,
    option,
    pace_options,
)
from edge_client.types import OfflineAnswers
from outrider_cli.extras import install
from outrider_cli.option_groups import GroupedCommand


@click.command(cls=GroupedCommand)
@option("--host", default="127.0.0.1", help="Address to listen on; others than this machine's own need a key.")
@option("--port", default=8080, type=click.IntRange(0, 65535), help="0 takes a free one.")
@option(
    "--api-key",
    multiple=True,
    envvar="OUTRIDER_EDGE_SERVE_API_KEY",
    help="Answer only who shows this key; may be given several times, or several in the environment with spaces "
    "between them. Other users of this machine can read a command line.",
)
@option(
    "--api-key-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with such keys, one in a line.",
)
@option("--without-api-key", is_flag=True, help="Let other machines ask without a key.")
@option(
    "--allowed-host",
    multiple=True,
    help="Another name under which this machine may be asked. Off the loopback interface, with a key, any may be used "
    "until one is given.",
)
@option("--cors-origin", multiple=True, help="Origin of web pages that may ask, or *.  [default: none]")
@option("--max-requests", default=64, type=click.IntRange(1), help="Most requests answered at a time.")
@option(
    "--log-level",
    default="warning",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="What is logged; prompts and answers never are.",
)
@connection_options
@device_options
@pace_options
@offline_options
def serve(
    host: str,
    port: int,
    api_key: tuple[str, ...],
    api_key_file: Path | None,
    without_api_key: bool,
    allowed_host: tuple[str, ...],
    cors_origin: tuple[str, ...],
    max_requests: int,
    log_level: str,
    **options: Any,
) -> None:
    """Answer chat apps on this device: an OpenAI-compatible server. See docs/assistant.md."""
    try:
        from edge_client.assistant.access import AccessSettings, allowed_hosts
        from edge_client.assistant.app import AssistantSettings
        from edge_client.assistant.serving import ServingError, listen
        from edge_client.assistant.serving import serve as serve_until_told
        from edge_client.link.security import is_loopback
    except ModuleNotFoundError as error:
        raise CommandError(f"{error}; serving needs more: {install('serve')}") from error
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    here = is_loopback(host)
    api_keys = api_key + _keys_in(api_key_file)
    if not here and not api_keys and not without_api_key:
        raise CommandError(
            f"{host} can be reached by other machines, which could ask without a key; give --api-key, or say "
            "--without-api-key if the network is yours alone"
        )
    if any(not key.strip() for key in api_keys) or (api_key_file and not api_keys):
        raise CommandError("an API key is empty; give one that is hard to guess")
    hosts = allowed_hosts(host, allowed_host, has_keys=bool(api_keys))
    try:
        listening = listen(host, port)
    except ServingError as error:
        raise CommandError(str(error)) from error
    offline = OfflineAnswers(options["offline_answers"])
    client = make_client(options | {"offline_answers": offline if offline is not OfflineAnswers.ASK else "auto"})
    name = f"[{host}]" if ":" in host else host
    address = f"http://{name}:{listening[0].getsockname()[1]}"
    serve_until_told(
        client,
        AssistantSettings(AccessSettings(api_keys, hosts, cors_origin), max_requests, offline=offline),
        listening,
        lambda: click.echo(
            f"serving answers from {options['verifier']} at {address}/v1  (to chat here: {address}/; Ctrl-C ends)"
        ),
    )


def _keys_in(file: Path | None) -> tuple[str, ...]:
    """Raises CommandError."""
    if file is None:
        return ()
    try:
        return tuple(line.strip() for line in file.read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read the API keys: {error}") from error
