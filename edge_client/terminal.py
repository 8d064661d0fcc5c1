"""Answers on a terminal: text as it comes, coloured by who wrote it first."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing

import click

from edge_client.types import RequestMetrics, StreamChunk


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
