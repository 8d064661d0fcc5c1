"""`netlab profiles`: the networks that have a name."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from netlab.link_settings import LinkSettings
    from netlab.profiles import Profile


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def profiles(name: str | None, as_json: bool) -> None:
    """List the networks that have a name, or show one of them, or a .toml file of your own.

    \b
        netlab profiles
        netlab profiles subway
        netlab profiles my-office.toml --json
    """
    import json

    from rich.console import Console

    from netlab import profiles as known

    try:
        shown = [known.find(one) for one in ([name] if name else known.names()) if name or one not in known.ALIASES]
    except known.ProfileError as error:
        raise click.UsageError(f"{error}.") from error
    if as_json:
        listed = [_json(profile) for profile in shown]
        click.echo(json.dumps(listed[0] if name else listed, indent=1))
    else:
        Console().print(_details(shown[0]) if name else _table(shown))


def _json(profile: Profile) -> dict[str, Any]:
    return {
        "name": profile.name,
        "description": profile.description,
        "source": profile.source,
        "settings": profile.settings.as_dict(),
    }


def _table(profiles: list[Profile]) -> Table:
    from rich import box
    from rich.table import Table

    view = Table(box=box.SIMPLE_HEAD, padding=0, collapse_padding=True)
    view.add_column("name", no_wrap=True)
    for name in ("RTT ms", "mean", "Mbps up", "down", "loss", "outages"):
        view.add_column(name, justify="right", no_wrap=True)
    view.add_column("")
    for profile in profiles:
        settings = profile.settings
        view.add_row(
            profile.name,
            f"{settings.rtt_ms:g}",
            f"{settings.mean_rtt_ms:g}",
            *_rates(settings),
            f"{settings.loss:.2%}" if settings.loss else "-",
            f"{settings.outage_share:.1%}" if settings.bad_ms else "-",
            profile.description,
        )
    return view


def _details(profile: Profile) -> Table:
    from rich.table import Table

    view = Table.grid(padding=(0, 2))
    view.add_row("name", profile.name)
    view.add_row("description", profile.description)
    view.add_row("source", profile.source)
    for field in fields(profile.settings):
        value = getattr(profile.settings, field.name)
        if value != field.default:
            view.add_row(field.name, f"{len(value.times_ms)} lines" if field.name.endswith("_trace") else str(value))
    return view


def _rates(settings: LinkSettings) -> tuple[str, str]:
    if settings.rate_trace:
        return "trace", "trace"
    up, down = (f"{kbps / 1000:g}" if kbps else "-" for kbps in (settings.up_kbps, settings.down_kbps))
    return up, down
