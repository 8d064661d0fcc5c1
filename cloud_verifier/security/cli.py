"""The commands `cloud-verifier keys`: who may use a verifier."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from pathlib import Path
from typing import Any, TextIO

import click

from cloud_verifier.security.principals import Quota


@click.group()
def keys() -> None:
    """Make, list and remove the API keys that a verifier accepts. A running one notices."""


def _file(command: Any) -> Any:
    return click.option(
        "--api-keys",
        "file",
        type=click.Path(path_type=Path, dir_okay=False),
        required=True,
        show_envvar=True,
        envvar="OUTRIDER_VERIFIER_SERVE_API_KEYS",
        help="File of keys, as given to `serve`.",
    )(command)


_limit = click.IntRange(0)


@keys.command()
@click.argument("name")
@_file
@click.option("--certificate", default="", help="Make no key: a client certificate with this name is enough.")
@click.option("--max-sessions", type=_limit, help="Sessions at once.")
@click.option("--max-queued", type=_limit, help="Sessions that wait for a place.")
@click.option("--max-prompt-tokens", type=_limit, help="Of one prompt.")
@click.option("--tokens-per-minute", type=_limit, help="Read and written.")
def add(name: str, file: Path, certificate: str, **limits: int | None) -> None:
    """Make a key for NAME and print it, once. A second key for the same name leaves the first valid."""
    from cloud_verifier.security.keys import KeyFile, KeyFileError

    given = {limit: value for limit, value in limits.items() if value is not None}
    try:
        key = KeyFile(file).add(name, given, certificate)
    except KeyFileError as error:
        raise click.ClickException(str(error)) from error
    if key:
        _close_to_others(sys.stdout)
        click.echo(key)
        click.echo(f"{name} has this key from now on. It is kept nowhere: copy it.", err=True)
    else:
        click.echo(f"{name} is who shows a client certificate with the name {certificate}.", err=True)


def _close_to_others(out: TextIO) -> None:
    """`keys add NAME > FILE`: the shell made a file that everybody may read."""
    with contextlib.suppress(OSError, ValueError):  # no file at all, or not ours to change
        mode = os.fstat(out.fileno()).st_mode
        if stat.S_ISREG(mode) and mode & (stat.S_IRWXG | stat.S_IRWXO):
            os.fchmod(out.fileno(), stat.S_IRUSR | stat.S_IWUSR)


@keys.command("list")
@_file
def list_keys(file: Path) -> None:
    """Show principals, the ids of their keys, and their limits."""
    from cloud_verifier.security.keys import ID_DIGITS, QUOTA_FIELDS, KeyFile, KeyFileError

    try:
        entries = KeyFile(file).entries()
    except KeyFileError as error:
        raise click.ClickException(str(error)) from error
    for entry in entries:
        quota: Quota = entry.principal.quota
        facts = [f"key {digest[:ID_DIGITS]}" for digest in entry.hashes]
        facts += [f"certificate {entry.certificate}"] if entry.certificate else []
        facts += [f"{limit} {value}" for limit in QUOTA_FIELDS if (value := getattr(quota, limit)) is not None]
        facts += ["disabled"] if entry.disabled else []
        click.echo(f"{entry.principal.name}: {', '.join(facts) or 'no key'}")
    if not entries:
        click.echo(f"{file} has no principals.", err=True)


@keys.command()
@click.argument("name")
@_file
@click.option("--key", "key_id", default=None, help="Only the key of this id, as `list` shows it.")
def remove(name: str, file: Path, key_id: str | None) -> None:
    """Take NAME's keys away. A running verifier ends their sessions at once, and opens nothing new."""
    from cloud_verifier.security.keys import KeyFile, KeyFileError

    try:
        KeyFile(file).remove(name, key_id)
    except KeyFileError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"Removed {f'key {key_id} of ' if key_id else ''}{name}.", err=True)
