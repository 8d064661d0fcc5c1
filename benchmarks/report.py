"""What every result file carries beside its figures, and the option that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from netlab import provenance
from outrider_cli.outputs import OutputFile

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def json_option(text: str = "Write the figures here.") -> Callable[[Decorated], Decorated]:
    """The option `--json FILE`, passed as `json_file`; a file that cannot be written is refused at once."""
    return click.option("--json", "json_file", type=OutputFile(), help=text)


def write(path: Path | None, figures: dict[str, Any]) -> None:
    """Write figures with commit, date and hardware; nothing without a path."""
    if path is None:
        return
    head = {"commit": provenance.commit(), "date": provenance.today(), "hardware": provenance.hardware()}
    path.write_text(json.dumps(head | figures, indent=1) + "\n")
