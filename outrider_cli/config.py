"""Settings from a YAML file: its keys are the long flags of a command, without the dashes.

A flag on the command line goes before the environment, the environment before the file, the file before the default.
What a flag accepts, its file entry accepts; whatever has an environment variable may stand in a file.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import click
from click.core import ParameterSource

HIDDEN = "(set)"
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


@runtime_checkable
class Worded(Protocol):
    """A type of option some of whose values are written as words, such as `auto`."""

    def word(self, value: Any) -> object:
        """As a person writes it."""


class Setting(NamedTuple):
    """A setting as resolved: its key, its value, and where that came from."""

    key: str
    value: object
    source: str


def config_option(default: Path | None = None) -> Callable[[Decorated], Decorated]:
    """The flag --config. default: file to read, if it is there, when none is named."""

    def read(ctx: click.Context, _param: click.Parameter, named: Path | None) -> None:
        file = named or (default if default is not None and default.is_file() else None)
        if file is not None:
            ctx.meta["outrider.config"] = file
            ctx.default_map = {**(ctx.default_map or {}), **_values(ctx, file)}

    where = f"  [default: {_short(default)}, if it is there]" if default else ""
    return click.option(
        "--config",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        is_eager=True,  # before the flags whose defaults it changes
        expose_value=False,
        show_envvar=True,
        callback=read,
        help=f"YAML file with the long flags as keys.{where}",
    )


def config_command(main: click.Group, first: str) -> click.Group:
    """The group `config` of a program. first: the command that is meant when none is named."""

    @click.group("config")
    def config() -> None:
        """Settings from file, environment and command line."""

    @config.command("show", context_settings={"ignore_unknown_options": True})
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND] [FLAGS]")
    @click.pass_context
    def show(ctx: click.Context, arguments: tuple[str, ...]) -> None:
        """Print what a command's settings would be, and where each comes from."""
        name, *flags = arguments if arguments and not arguments[0].startswith("-") else (first, *arguments)
        command = main.commands.get(name)
        if command is None or not any(param.name == "config" for param in command.params):
            takers = [n for n, c in main.commands.items() if any(p.name == "config" for p in c.params)]
            raise click.UsageError(f"no command {name!r} takes --config; these do: {', '.join(sorted(takers))}")
        settings = list(resolve(command, name, flags, ctx.find_root()))
        widths = max(len(s.key) for s in settings), max(len(_shown(s.value)) for s in settings)
        for setting in settings:
            click.echo(f"{setting.key:{widths[0]}}  {_shown(setting.value):{widths[1]}}  {setting.source}".rstrip())

    return config


def resolve(command: click.Command, name: str, flags: list[str], parent: click.Context) -> Iterator[Setting]:
    """Every setting of a command as it would be with these flags. Raises click's errors, as the command would."""
    command = copy.copy(command)
    command.params = [copy.copy(param) for param in command.params]
    for param in command.params:
        param.required = False  # what is missing is shown, not refused
    with command.make_context(name, flags, parent=parent) as ctx:
        for param in settable(command):
            assert param.name is not None
            value = ctx.params.get(param.name)
            if value and param.name.endswith("api_key"):
                value = HIDDEN
            if isinstance(param.type, Worded):
                value = param.type.word(value)
            yield Setting(key_of(param), value, _source(ctx, param))


def settable(command: click.Command) -> list[click.Option]:
    """What may stand in a file: flags with an environment variable, in the order of --help."""
    return [p for p in command.params if isinstance(p, click.Option) and p.show_envvar and p.name != "config"]


def key_of(option: click.Option) -> str:
    """The long flag without its dashes."""
    return max((name for name in option.opts if name.startswith("--")), key=len).removeprefix("--")


def _values(ctx: click.Context, file: Path) -> dict[str, object]:
    """A file's settings by parameter name; those of the program's other commands are left out."""
    entries = _entries(file)
    mine = {key_of(option): option for option in settable(ctx.command)}
    parent = ctx.parent.command if ctx.parent is not None else None
    siblings = parent.commands.values() if isinstance(parent, click.Group) else ()
    known = mine.keys() | {key_of(option) for command in siblings for option in settable(command)}
    if unknown := sorted(entries.keys() - known):
        plural = "s" if len(unknown) > 1 else ""
        raise click.UsageError(
            f"{file}: unknown setting{plural} {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        )
    values: dict[str, object] = {}
    for key, value in entries.items():
        if key not in mine or value is None:
            continue
        option = mine[key]
        if option.multiple and not isinstance(value, list):
            value = [value]  # noqa: PLW2901 - one of what may be several
        try:
            if isinstance(value, dict) or (isinstance(value, list) and not option.multiple):
                raise click.BadParameter("one value is expected")
            option.type_cast_value(ctx, value)
        except click.BadParameter as error:
            raise click.UsageError(f"{file}: {key}: {error.message}") from error
        assert option.name is not None
        values[option.name] = value
    return values


def _entries(file: Path) -> dict[str, Any]:
    import yaml

    try:
        entries = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise click.UsageError(f"cannot read {file} as YAML: {error}") from error
    if not isinstance(entries or {}, dict):
        raise click.UsageError(f"{file}: expected lines of the form 'flag: value'")
    return {str(key).replace("_", "-"): value for key, value in (entries or {}).items()}


def _source(ctx: click.Context, param: click.Option) -> str:
    assert param.name is not None
    source = ctx.get_parameter_source(param.name)
    if source is ParameterSource.COMMANDLINE:
        return "command line"
    if source is ParameterSource.ENVIRONMENT:
        names = [param.envvar] if isinstance(param.envvar, str) else list(param.envvar or [])
        named = [name for name in names if name in os.environ]
        return f"environment: {(named or [f'{ctx.auto_envvar_prefix}_{param.name.upper()}'])[0]}"
    if source is ParameterSource.DEFAULT_MAP:
        return str(ctx.meta["outrider.config"])
    return "default"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(str(one) for one in value)
    return "" if value is None else str(value)


def _short(path: Path | None) -> str:
    return str(path).replace(str(Path.home()), "~")
