"""Environment variables: ``OUTRIDER_<PROGRAM>_<COMMAND>_<OPTION>``, where OPTION is the long flag."""

from __future__ import annotations

import os
from collections.abc import Mapping

import click


def take_former_names(former: Mapping[str, str]) -> None:
    """Take values from an earlier version's names, with a warning; the new names go before them. former: old to new."""
    for old, new in former.items():
        if old in os.environ:
            click.secho(f"{old} is called {new} now; the old name goes with the next version", fg="yellow", err=True)
            os.environ.setdefault(new, os.environ[old])
