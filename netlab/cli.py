"""The `netlab` command."""

from __future__ import annotations

import signal

import click

from netlab.commands.agree import agree
from netlab.commands.link import link
from netlab.commands.plot import plot
from netlab.commands.profiles import profiles
from netlab.commands.race import race
from netlab.commands.record import record
from netlab.commands.report import report
from netlab.commands.simulate import simulate
from netlab.commands.sweep import sweep
from netlab.commands.timeline import timeline


@click.group(
    context_settings={
        "auto_envvar_prefix": "OUTRIDER_NETLAB",
        "help_option_names": ["-h", "--help"],
        "show_default": True,
        "max_content_width": 120,
    }
)
@click.version_option(package_name="outrider")
def main() -> None:
    """The network-latency laboratory of Outrider."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what it has started ends with it


for command in (link, profiles, simulate, record, race, sweep, plot, timeline, report, agree):
    main.add_command(command)

if __name__ == "__main__":
    main()
