"""How fast the adaptive pace settles when the network or the device changes in mid-answer, in the simulator.

Many long answers are played through the same change at the same moment, and their tokens counted. Settled is what they
do some seconds later; the table says how much of that speed they have in the windows before. A longer round trip stalls
the commits once, by half of the difference, whatever the pace does; a fixed lookahead is played for comparison.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import report
from netlab.console import print_whole
from netlab.link_settings import LinkSettings
from netlab.simulator.device import DeviceSettings
from netlab.simulator.link import Link
from netlab.simulator.pair import Answer, heavy_headed
from netlab.simulator.run import Rider, simulate
from netlab.simulator.verifier import StepTime, VerifierSettings
from netlab.traces import RttTrace
from speculation.pace import policies
from speculation.pace.observed import Committed, Diary, Observed

CHANGE_MS, END_MS = 6000.0, 16_000.0
SETTLED_MS = 5000.0  # after the change
WINDOWS_MS = ((0.0, 500.0), (500.0, 1000.0), (1000.0, 2000.0), (2000.0, 4000.0))  # after the change
STEP_MS, ACCEPTANCE = 30.0, 0.85
TOKENS = 1600  # more than anybody writes until END_MS


@dataclass(frozen=True)
class Change:
    """What changes in mid-answer: round trip and time of a guess, before and after."""

    name: str
    rtt_ms: tuple[float, float]
    draft_ms: tuple[float, float]


CHANGES = (
    Change("round trip 20 to 200 ms", (20, 200), (5, 5)),
    Change("round trip 200 to 20 ms", (200, 20), (5, 5)),
    Change("device throttled 4 times", (50, 50), (5, 20)),
    Change("device throttled no more", (50, 50), (20, 5)),
)


def ride(change: Change, policy: str, answer: Answer) -> NDArray[np.float64]:
    """Tokens that came in before the change, in each window, and settled: per millisecond.

    Raises AssertionError if words differ.
    """
    diary = Diary()
    trace = RttTrace((0.0, CHANGE_MS, 10 * END_MS), (*change.rtt_ms, change.rtt_ms[1]))
    before_ms, after_ms = change.draft_ms
    device = DeviceSettings(draft_ms=lambda now_ms: before_ms if now_ms < CHANGE_MS else after_ms)
    pace = Observed(policies.find(policy)(), diary)
    rider = Rider(answer, Link.of_settings(LinkSettings(rtt_trace=trace)), pace, device)
    assert simulate([rider], VerifierSettings(StepTime(STEP_MS))).results[0].same_words
    windows = ((-SETTLED_MS / 2, 0.0), *WINDOWS_MS, (SETTLED_MS, END_MS - CHANGE_MS))
    commits = [(event.at_ms - CHANGE_MS, event.tokens) for event in diary.events if isinstance(event, Committed)]
    return np.array([sum(n for at, n in commits if first <= at < end) / (end - first) for first, end in windows])


def row(change: Change, policy: str, rates: NDArray[np.float64]) -> dict[str, Any]:
    """One change under one policy. rates: shape [answers, windows]. noise: standard error of the last window."""
    mean = rates.mean(axis=0)
    settled = mean[-1]
    error = rates[:, -2].std() / np.sqrt(len(rates)) / settled
    names = [f"speed_{first:g}_to_{end:g}_ms" for first, end in WINDOWS_MS]
    return {
        "change": change.name,
        "policy": policy,
        "ms_per_token_before": round(1 / float(mean[0]), 2),
        "ms_per_token_settled": round(1 / float(settled), 2),
        **{name: round(float(rate / settled), 3) for name, rate in zip(names, mean[1:-1], strict=True)},
        "noise": round(float(error), 3),
    }


@click.command(context_settings={"show_default": True})
@click.option("--answers", default=96, type=click.IntRange(1))
@click.option("--jobs", default=os.cpu_count(), type=click.IntRange(1))
@report.json_option()
def main(answers: int, jobs: int, json_file: Path | None) -> None:
    """Play every change; print what share of its settled speed the pace has how soon."""
    played = heavy_headed(ACCEPTANCE).answers(answers, TOKENS, seed=11)
    cases = [(change, policy) for change in CHANGES for policy in ("adaptive", "fixed:16")]
    with ProcessPoolExecutor(jobs) as pool:
        rows = [
            row(change, policy, np.array(list(pool.map(partial(ride, change, policy), played, chunksize=4))))
            for change, policy in track(cases, "changes")
        ]
    windows = [f"{first / 1000:g} to {end / 1000:g} s" for first, end in WINDOWS_MS]
    table = Table("change", "policy", "ms/token before", "settled", *windows, "noise")
    for one in rows:
        table.add_row(*(str(value) for value in one.values()))
    print_whole(Console(), table)
    settings = {"answers": answers, "step_ms": STEP_MS, "acceptance": ACCEPTANCE}
    report.write(json_file, {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
