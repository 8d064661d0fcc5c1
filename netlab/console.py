"""Tables that lose no column: on a narrow terminal and in a pipe they are as wide as what they say."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

_WIDEST = 1000


def print_whole(console: Console, table: Table) -> None:
    """Print a table; lines that are wider than the terminal are folded by it, and nothing is cut."""
    table.expand = False
    needed = Measurement.get(console, console.options.update(width=_WIDEST, max_width=_WIDEST), table).maximum
    before = console.width
    console.width = max(before, needed)
    try:
        console.print(table, soft_wrap=False)
    finally:
        console.width = before
