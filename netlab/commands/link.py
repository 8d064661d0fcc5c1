"""`netlab link`: an emulated link between any two programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from netlab.commands.options import address

if TYPE_CHECKING:
    from netlab.link import Link


@click.command()
@click.option(
    "--listen",
    type=address,
    metavar="HOST:PORT",
    default="127.0.0.1:0",
    show_envvar=True,
    help="Where to accept connections; port 0 takes a free one.",
)
@click.option(
    "--to",
    "target",
    type=address,
    metavar="HOST:PORT",
    required=True,
    envvar="OUTRIDER_NETLAB_LINK_TO",
    show_envvar=True,
    help="Where they lead to.",
)
@click.option(
    "--rtt-ms",
    type=click.FloatRange(0, 120_000),
    default=50.0,
    show_envvar=True,
    help="Round trip, half of it each way.",
)
@click.option("--jitter-ms", default=0.0, show_envvar=True, help="Most extra delay of a burst; never reorders.")
@click.option("--up-kbps", default=0.0, show_envvar=True, help="Bandwidth towards the target; 0 for no limit.")
@click.option("--down-kbps", default=0.0, show_envvar=True, help="Bandwidth back; 0 for no limit.")
@click.option("--loss", default=0.0, show_envvar=True, help="Share of packets lost.")
@click.option("--loss-stall-ms", default=200.0, show_envvar=True, help="How long a loss holds up its connection.")
@click.option("--seed", default=0, show_envvar=True, help="Of jitter and losses.")
def link(listen: tuple[str, int], target: tuple[str, int], rtt_ms: float, **settings: float) -> None:
    """Emulate a link between any two programs.

    Runs until Ctrl-C, then prints what the link carried. Point the client at --listen instead of the server:

    \b
        netlab link --listen 127.0.0.1:6000 --to 127.0.0.1:50051 --rtt-ms 80 --jitter-ms 10
    """
    import asyncio

    from netlab.event_loop import precise_event_loop, wake_promptly
    from netlab.link import Link, LinkSettings

    try:
        behaviour = LinkSettings(delay_up_ms=rtt_ms / 2, delay_down_ms=rtt_ms / 2, **settings)  # type: ignore[arg-type]
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error
    wake_promptly()
    with asyncio.Runner(loop_factory=precise_event_loop) as runner:
        runner.run(_run(Link(target, behaviour, listen=listen), listen, target))


async def _run(link: Link, listen: tuple[str, int], target: tuple[str, int]) -> None:
    """Run a link until SIGINT or SIGTERM."""
    import asyncio
    import signal

    stopped = asyncio.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_number, stopped.set)
    try:
        await link.start()
    except OSError as error:
        raise click.ClickException(f"cannot listen on {listen[0]}:{listen[1]}: {error}") from error
    click.echo(f"{listen[0]}:{link.port} leads to {target[0]}:{target[1]}; Ctrl-C ends it")
    await stopped.wait()
    counters = link.counters()
    await link.stop()
    click.echo(str(counters))
