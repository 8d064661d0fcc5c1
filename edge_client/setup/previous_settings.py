"""What an earlier set-up has left: a second one starts from there, and leaves alone what it does not ask for."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click
import yaml
from click.core import ParameterSource

from outrider_cli.config import key_of, settable


def read(file: Path) -> dict[str, Any]:
    """The settings of a file, if there are any."""
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return {str(key).replace("_", "-"): value for key, value in content.items()} if isinstance(content, dict) else {}


def way_in(before: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """What the same verifier wanted of this device before, as far as it is still there; flags go before it."""
    found: dict[str, Any] = {}
    if options["verifier_api_key"]:
        before = {**before, "verifier-api-key-file": None}
    elif options["verifier_api_key_file"]:
        before = {**before, "verifier-api-key": None}
    for name in [name for name, given in options.items() if not given]:
        value = before.get(name.replace("_", "-"))
        if value is True or (name == "verifier_api_key" and isinstance(value, str)):
            found[name] = value
        elif isinstance(value, str) and Path(value).is_file():
            found[name] = Path(value)
    return found


def unsaid(before: dict[str, Any], context: click.Context, *names: str) -> dict[str, Any]:
    """Of these parameters of `setup` what was set before, where nobody says otherwise now; context: of `setup`."""
    found: dict[str, Any] = {}
    for option in settable(context.command):
        value = before.get(key_of(option))
        if option.name not in names or value is None:
            continue
        if context.get_parameter_source(option.name) is ParameterSource.DEFAULT:
            with contextlib.suppress(click.BadParameter):
                found[option.name] = option.type_cast_value(context, value)
    return found


def kept(before: dict[str, Any], context: click.Context) -> dict[str, Any]:
    """Settings of the other commands that `setup` does not ask for; context: of `setup`."""
    program = context.find_root().command
    commands = program.commands.values() if isinstance(program, click.Group) else ()
    known = {key_of(option) for command in commands for option in settable(command)}
    asked = {key_of(option) for option in settable(context.command)}
    return {key: value for key, value in before.items() if key in known - asked}
