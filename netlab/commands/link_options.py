"""The options that describe a link, the same in all commands: a profile, and what overrides it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from netlab import jitter
from netlab.commands.options import FILE_IN

if TYPE_CHECKING:
    from netlab.link_settings import LinkSettings

# Fields of LinkSettings whose options bear their names.
_FIELDS: dict[str, tuple[float | str, str]] = {
    "delay_up_ms": (0.0, "Delay towards the target, if not half of the round trip."),
    "delay_down_ms": (0.0, "Delay back, if not half of the round trip."),
    "jitter_ms": (0.0, "Twice the mean extra delay of a burst; never reorders."),
    "jitter_model": (jitter.UNIFORM, "How the extra delay is drawn."),
    "up_kbps": (0.0, "Bandwidth towards the target; 0 for no limit."),
    "down_kbps": (0.0, "Bandwidth back; 0 for no limit."),
    "burst_bytes": (0, "How much passes at once before the bandwidth binds."),
    "queue_ms": (0.0, "Most that waits for the bandwidth, then the sender does; 0 for no bound."),
    "loss": (0.0, "Share of packets lost."),
    "loss_stall_ms": (200.0, "How long a loss holds up its connection."),
    "good_ms": (0.0, "Mean time between outages; 0 for none."),
    "bad_ms": (0.0, "Mean time of an outage."),
    "bad_loss": (1.0, "Share of packets lost in an outage; 1 lets nothing pass until it ends."),
    "offset_ms": (0.0, "Where in traces and outages to begin."),
}
_CHOICES = {"jitter_model": click.Choice(list(jitter.MODELS))}


def link_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that `link_settings` reads."""
    options = [
        click.option(
            "--profile",
            metavar="NAME|FILE",
            show_envvar=True,
            help="A network by name (netlab profiles) or your own .toml file; the other options override it.",
        ),
        *(
            click.option(
                f"--{name.replace('_', '-')}", type=_CHOICES.get(name), default=default, show_envvar=True, help=text
            )
            for name, (default, text) in _FIELDS.items()
        ),
        click.option(
            "--rtt-trace", type=FILE_IN, show_envvar=True, help="CSV of time_ms,rtt_ms to replay, instead of delays."
        ),
        click.option(
            "--rate-trace",
            type=FILE_IN,
            show_envvar=True,
            help="CSV of time_ms,up_kbps,down_kbps to replay, instead of bandwidths; 0 lets nothing pass.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def link_settings(context: click.Context, rtt_ms: float | None) -> LinkSettings:
    """The link that a command's options describe.

    rtt_ms: of a round trip that was asked for, else None. Raises click.UsageError for a profile, a trace or a value
    that cannot be used and for options that contradict each other.
    """
    from netlab import profiles, traces
    from netlab.link_settings import LinkSettings

    given = {name: context.params[name] for name in (*_FIELDS, "rtt_trace", "rate_trace") if is_given(context, name)}
    for name, others in (("rtt_trace", ("delay_up_ms", "delay_down_ms")), ("rate_trace", ("up_kbps", "down_kbps"))):
        for other in others:
            if name in given and other in given:
                raise click.UsageError(f"{_flag(name)} takes the place of {_flag(other)}; leave one of them out.")
    if "rtt_trace" in given and rtt_ms is not None:
        raise click.UsageError("--rtt-trace says the round trips itself; leave --rtt-ms out.")
    try:
        profile = context.params["profile"]
        settings = profiles.find(profile).settings if profile else LinkSettings()
        if rtt_ms is not None:
            settings = settings.with_rtt(rtt_ms)
        if {"delay_up_ms", "delay_down_ms"} & given.keys():
            settings = replace(settings, rtt_trace=None)
        if {"up_kbps", "down_kbps"} & given.keys():
            settings = replace(settings, rate_trace=None)
        for name, read in (("rtt_trace", traces.read_rtts), ("rate_trace", traces.read_rates)):
            if isinstance(path := given.get(name), Path):
                given[name] = read(path)
        return replace(settings, **given)
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error


def is_given(context: click.Context, name: str) -> bool:
    """Whether somebody set the option, on the command line or in the environment."""
    source = context.get_parameter_source(name)
    return source not in (None, click.core.ParameterSource.DEFAULT, click.core.ParameterSource.DEFAULT_MAP)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
