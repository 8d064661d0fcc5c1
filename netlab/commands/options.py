"""What the commands' options have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from outrider_cli.outputs import OutputFile

MAX_PORT = 65535


def address(value: str) -> tuple[str, int]:
    """Split HOST:PORT at its last colon; brackets around an IPv6 address are taken off."""
    host, _, port = value.rpartition(":")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise click.BadParameter(f"{value!r}: an IPv6 address needs brackets, for example [::1]:50051.")
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


FILE_OUT = OutputFile()
FILE_IN = click.Path(path_type=Path, dir_okay=False, exists=True)


def simulate_or_real(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --simulate and --real, one of which must be given; the command gets `simulate`, a bool."""

    @functools.wraps(command)
    def chosen(*, how: str | None, **options: Any) -> Any:
        if how is None:
            raise click.UsageError(
                "say where to run it: --simulate, in the simulator, or --real, on the real programs."
            )
        return command(simulate=how == "simulate", **options)

    real = click.option("--real", "how", flag_value="real", help="On the real programs.")
    return click.option("--simulate", "how", flag_value="simulate", help="In the simulator.")(real(chosen))
