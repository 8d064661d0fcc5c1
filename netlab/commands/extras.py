"""What to say when a command lacks the packages it needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click

from outrider_cli.extras import install


@contextlib.contextmanager
def needs(*extras: str) -> Iterator[None]:
    """Turn a missing module into the line that brings it. extras: that hold all modules imported inside."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise click.ClickException(f"this command needs {error.name}: {install(*extras)}") from error
