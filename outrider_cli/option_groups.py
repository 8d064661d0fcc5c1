"""Help texts whose options stand under headings, by what they are about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def options_of(title: str, *options: Any) -> Callable[[Any], Any]:
    """One decorator for several options, which --help lists under this title and in this order."""

    def decorate(function: Any) -> Any:
        for one in reversed(options):
            function = one(function)
            function.__click_params__[-1].help_title = title
        return function

    return decorate


class GroupedCommand(click.Command):
    """A command whose own options come first, and then those of `options_of` under their titles."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click does, once for every title."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is not None:
                sections.setdefault(getattr(param, "help_title", "Options"), []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
