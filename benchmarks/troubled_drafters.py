"""First word and total time with drafters that are slow, late, hanging or failing, over plain streaming's.

A device's troubles must cost speed-up, never time: the bar is 1.02 for both. Every prompt is a conversation of its own
of some hundred tokens, for reading is where a slow drafter would keep words waiting. Each repetition plays plain
streaming and every trouble in turn, streaming twice, so that the second tells what chance alone makes of a ratio.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import report
from edge_client.cli import SWITCH_INTERVAL_S
from edge_client.client import EdgeClient
from edge_client.drafters import load_drafter
from edge_client.types import RideSettings
from netlab.console import print_whole
from netlab.experiments.rig import DEMO
from netlab.experiments.troubled import Trouble, Troubled
from netlab.link_process import LinkProcess
from netlab.link_settings import LinkSettings
from netlab.prompts import OPENINGS
from netlab.verifier_process import VerifierProcess
from speculation.pace.base import Objective
from speculation.sampling import SamplingParams

BAR = 1.02
FIRST, PLAIN, AGAIN, HEALTHY = "first", "streaming", "streaming again", "no trouble"


class Timing(NamedTuple):
    """Of one answer."""

    first_ms: float
    total_ms: float


def conversation(repetition: int) -> list[dict[str, str]]:
    """Some 300 tokens that no other repetition begins with."""
    turns = [OPENINGS[(repetition + i) % len(OPENINGS)] for i in range(12)]
    return [
        {"role": "assistant" if i % 2 else "user", "content": f"{repetition}. {turn}"}
        for i, turn in enumerate(turns[:-1])
    ]


def ask(client: EdgeClient, repetition: int, tokens: int, *, drafts: bool) -> tuple[Timing, tuple[int, ...]]:
    """One answer and its tokens."""
    params = SamplingParams(temperature=0.8, max_tokens=tokens, ignore_eos=True)
    first_ms, began_s, output = None, time.perf_counter(), None
    for chunk in client.stream(conversation(repetition), params, seed=repetition, ride=RideSettings(drafts=drafts)):
        if chunk.token_ids and first_ms is None:
            first_ms = (time.perf_counter() - began_s) * 1e3
        output = chunk.output
    assert first_ms is not None
    assert output is not None
    return Timing(first_ms, (time.perf_counter() - began_s) * 1e3), output.token_ids


def measure(address: str, repetitions: int, tokens: int, objective: Objective) -> dict[str, list[Timing]]:
    """Timings by way. Clients live for one answer, as one that hangs serves no other."""
    found: dict[str, list[Timing]] = {}
    for repetition in track(range(repetitions), description="Playing", console=Console(stderr=True)):
        words = set()
        ways: list[str] = [FIRST, PLAIN, HEALTHY, *Trouble, AGAIN]  # the first reads the prompt, which is then kept
        for way in ways:
            drafter = load_drafter(DEMO / "drafter-onnx")
            assert drafter is not None
            troubled = Troubled(drafter, Trouble(way)) if way in list(Trouble) else drafter
            with EdgeClient(address, troubled, objective=objective) as client:
                client.model_info()  # the connection stands
                timing, ids = ask(client, repetition, tokens, drafts=way not in (FIRST, PLAIN, AGAIN))
                if isinstance(troubled, Troubled):
                    troubled.released.set()
            words.add(ids)
            if repetition and way != FIRST:  # the first repetition warms up
                found.setdefault(way, []).append(timing)
        assert len(words) == 1, "other words"
    return found


@click.command(context_settings={"show_default": True})
@click.option("--repetitions", default=12)
@click.option("--max-tokens", "tokens", default=48)
@click.option("--step-ms", default=30.0)
@click.option("--rtt-ms", default=50.0)
@click.option("--objective", type=click.Choice(list(Objective), case_sensitive=False), default=Objective.LATENCY)
@report.json_option()
def main(
    repetitions: int, tokens: int, step_ms: float, rtt_ms: float, objective: Objective, json_file: Path | None
) -> None:
    """Play, and print ratios: median, and the worst answer's."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)  # as `edge-client` does
    options = ["--step-ms", str(step_ms), "--threads", "1"]
    with (
        VerifierProcess(DEMO / "target", options=options) as verifier,
        LinkProcess(("127.0.0.1", verifier.port), LinkSettings.of_rtt(rtt_ms)) as link,
    ):
        found = measure(f"127.0.0.1:{link.port}", repetitions + 1, tokens, objective)
    table = Table(
        "drafter",
        "first word, ms",
        "over streaming",
        "worst",
        "total, ms",
        "over streaming",
        "worst",
        title=f"Bar {BAR}",
    )
    rows: list[dict[str, Any]] = []
    for way, timings in found.items():
        firsts = [timing.first_ms / plain.first_ms for timing, plain in zip(timings, found[PLAIN], strict=True)]
        totals = [timing.total_ms / plain.total_ms for timing, plain in zip(timings, found[PLAIN], strict=True)]
        row = {
            "drafter": way,
            "first_ms": round(statistics.median(timing.first_ms for timing in timings), 1),
            "first_over_streaming": round(statistics.median(firsts), 3),
            "worst_first": round(max(firsts), 3),
            "total_ms": round(statistics.median(timing.total_ms for timing in timings), 1),
            "total_over_streaming": round(statistics.median(totals), 3),
            "worst_total": round(max(totals), 3),
        }
        rows.append(row)
        table.add_row(*map(str, row.values()))
    print_whole(Console(), table)
    report.write(json_file, {"rtt_ms": rtt_ms, "step_ms": step_ms, "objective": objective.value, "rows": rows})


if __name__ == "__main__":
    main()
