"""A race's rows as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from netlab.experiments.race import Row


def table(rows: Sequence[Row]) -> Table:
    """One line per condition and policy; the least time per token of a condition is bold."""
    view = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        collapse_padding=True,
        title="Medians over the prompts; /stream: total time over streaming's, prompt by prompt; pos: positions that "
        "the target evaluated; saved: second guesses",
        title_justify="left",
    )
    view.add_column("network", no_wrap=True)
    view.add_column("policy", overflow="fold")
    for name in ("first ms", "ms/tok", "/stream", "p95", "worst", "fwd/tok", "pos/tok", "accept", "saved", "B/tok"):
        view.add_column(name, justify="right", no_wrap=True)
    view.add_column("same")
    best: dict[str, float] = {}
    for row in rows:
        network = _network(row)
        best[network] = min(best.get(network, row["ms_per_token_p50"]), row["ms_per_token_p50"])
    shown = None
    for row in rows:
        network = _network(row)
        if shown not in (None, network):
            view.add_section()
        per_token = f"{row['ms_per_token_p50']:.1f}"
        view.add_row(
            network if network != shown else "",
            row["candidate"],
            f"{row['ttft_ms_p50']:.0f}",
            f"[bold green]{per_token}[/]" if row["ms_per_token_p50"] == best[network] else per_token,
            f"{row['total_over_streaming_p50']:.3f}",
            f"{row['total_over_streaming_p95']:.3f}",
            f"{row['total_over_streaming_max']:.3f}",
            f"{row['target_forwards_per_token']:.2f}",
            f"{row['target_positions_per_token']:.1f}",
            "-" if row["acceptance"] is None else f"{row['acceptance']:.2f}",
            f"{row['saved_per_token']:.0%}" if row["saved_per_token"] else "-",
            f"{row['uplink_bytes_per_token']:.0f}",
            "[green]yes" if row["same_words"] else "[red bold]NO",
        )
        shown = network
    return view


def _network(row: Row) -> str:
    return str(row["profile"] or f"{row['rtt_ms']:g} ms")
