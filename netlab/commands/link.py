"""`netlab link`: an emulated link between any two programs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from netlab.commands.link_options import is_given, link_options, link_settings
from netlab.commands.options import address

if TYPE_CHECKING:
    from netlab.link import Link
    from netlab.link_settings import LinkSettings


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
@link_options
@click.option("--seed", default=0, show_envvar=True, help="Of jitter, losses and outages.")
@click.option(
    "--netem",
    metavar="INTERFACE",
    help="Run no link; print the tc commands that make the kernel's netem behave so on an interface.",
)
@click.option("--apply", is_flag=True, help="Run what --netem prints; takes root's rights.")
def link(
    listen: tuple[str, int],
    target: tuple[str, int] | None,
    rtt_ms: float,
    seed: int,
    netem: str | None,
    apply: bool,
    **_: object,
) -> None:
    """Emulate a link between any two programs.

    Runs until Ctrl-C, then prints what the link carried. Point the client at --listen instead of the server:

    \b
        netlab link --listen 127.0.0.1:6000 --to 127.0.0.1:50051 --rtt-ms 80 --jitter-ms 10
        netlab link --listen 127.0.0.1:6000 --to 127.0.0.1:50051 --profile lte
        netlab link --profile lte --netem eth0
    """
    context = click.get_current_context()
    described = ("rtt_ms", "profile", "rtt_trace", "delay_up_ms", "delay_down_ms")
    wanted = is_given(context, "rtt_ms") or not any(is_given(context, name) for name in described)
    settings = link_settings(context, rtt_ms if wanted else None)
    if is_given(context, "seed"):
        settings = replace(settings, seed=seed)
    if netem is not None:
        _netem(settings, netem, apply)
        return
    if apply:
        raise click.UsageError("--apply runs what --netem prints; name an interface with --netem.")
    if target is None:
        raise click.UsageError("Missing option '--to': where the connections lead to.")

    import asyncio

    from netlab.event_loop import precise_event_loop, wake_promptly
    from netlab.link import Link

    wake_promptly()
    with asyncio.Runner(loop_factory=precise_event_loop) as runner:
        runner.run(_run(Link(target, settings, listen=listen), listen, target))


def _netem(settings: LinkSettings, interface: str, apply: bool) -> None:
    """Print the plan, and run it if wanted."""
    import shlex

    from netlab import netem

    plan = netem.plan(settings, interface)
    for command in plan.commands:
        click.echo(shlex.join(command))
    for command in plan.undo:
        click.echo(f"# undo: {shlex.join(command)}")
    for sentence in plan.differences:
        click.echo(f"# {sentence}")
    if apply:
        try:
            netem.apply(plan)
        except netem.NetemError as error:
            raise click.ClickException(f"{error}.") from error
        click.echo("# applied")


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
