"""What a person at a terminal is told and asked beside the answer itself, which is all that standard output gets."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Iterator
from contextlib import closing

import click

from edge_client.types import LinkState, RequestMetrics, StreamChunk

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


def say(chunks: Iterator[StreamChunk]) -> str:
    """Print an answer as it grows and a line of figures after it; returns the text.

    Text comes per commit, so a commit is green if the device had guessed most of it. Ctrl-C ends the answer, not the
    program: what has come so far is the answer.
    """
    text: list[str] = []
    metrics: RequestMetrics | None = None
    try:
        with closing(chunks):  # type: ignore[type-var]
            for chunk in chunks:
                text.append(chunk.text)
                guessed = sum(chunk.drafted) * 2 > len(chunk.drafted)
                click.secho(chunk.text, nl=False, fg="green" if guessed else None)
                sys.stdout.flush()
                if chunk.output is not None:
                    metrics = chunk.output.metrics
    except KeyboardInterrupt:
        click.echo(" [stopped]", nl=False)
    click.echo()
    if metrics is not None:
        click.secho(_figures(metrics), dim=True)
        for notice in metrics.notices:
            click.secho(notice, fg="yellow", err=True)
    return "".join(text)


def _figures(metrics: RequestMetrics) -> str:
    parts = [f"first token {metrics.ttft_ms:.0f} ms", f"{metrics.ms_per_token:.1f} ms per token"]
    if metrics.rtt_ms is not None:
        parts.append(f"round trip {metrics.rtt_ms:.0f} ms")
    if metrics.acceptance is not None:
        parts.append(f"{metrics.acceptance:.0%} of drafts accepted")
    return ", ".join(parts)
