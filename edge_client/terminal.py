"""What a person at a terminal is told and asked beside the answer itself, which is all that standard output gets."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Iterator

import click

from edge_client.types import LinkState, StreamChunk

TOLD = {
    LinkState.CONNECTING: "connecting to the verifier",
    LinkState.WAITING: "waiting for the network",
    LinkState.OFFLINE: "no network: from here on the device's own words, which no verifier has seen",
}
QUESTION = "The verifier cannot be reached. May this device answer alone, as well as it can? [y/N] "
_POLL_S = 0.1


def noted(chunks: Iterator[StreamChunk]) -> Iterator[StreamChunk]:
    """The same chunks, with a line on standard error whenever the state of the link changes."""
    state = LinkState.LIVE
    for chunk in chunks:
        if chunk.link is not state and chunk.output is None:
            state = chunk.link
            if state in TOLD:
                click.secho(f"[{TOLD[state]}]", fg="yellow", err=True)
        yield chunk


def ask_at_terminal(stands: Callable[[], bool]) -> bool:
    """Ask for as long as the question stands; without a terminal the answer is no."""
    if not sys.stdin.isatty():
        return False
    click.secho(QUESTION, fg="yellow", nl=False, err=True)
    while stands():
        if select.select([sys.stdin], [], [], _POLL_S)[0]:
            return sys.stdin.readline().strip().lower() in ("y", "yes")
    click.echo(err=True)
    return False


def read_line() -> str:
    """The next line of standard input. Raises EOFError."""
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line
