"""What the riding loop costs per drafted token beyond the bare drafter.

A real session against a real verifier drafts bursts of guesses at T = 0.8, sending them in blocks as always; the bare
drafter then evaluates the very same tokens. Both take turns, and medians over the bursts are compared.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks import report
from edge_client.client import EdgeClient
from edge_client.drafters import load_drafter
from edge_client.drafters.base import Drafter
from netlab.console import print_whole
from netlab.experiments.rig import DEMO
from netlab.race import WARM_UP, chat
from netlab.verifier_process import VerifierProcess
from speculation.pace.base import PATIENCE_UNLIMITED_MS, Action, Pace, View
from speculation.sampling import SamplingParams


class Bursts(Pace):
    """Draft `length` guesses without a pause, flushing every eight; then let the verifier judge them."""

    name = "bursts"
    patience_ms = PATIENCE_UNLIMITED_MS

    def __init__(self, length: int) -> None:
        self.length = length
        self.ms_per_token: list[float] = []
        self._began_s = 0.0

    def next(self, view: View) -> Action:
        """Drafts until the burst is complete, and takes its time."""
        if view.depth == view.unsent == 1:  # the first guess waits for the prompt or a rollback to be read
            self._began_s = time.perf_counter()
        if view.depth >= self.length:
            if view.unsent:
                elapsed_ms = (time.perf_counter() - self._began_s) * 1e3
                self.ms_per_token.append(elapsed_ms / (self.length - 1))
                return Action.FLUSH
            return Action.WAIT
        return Action.FLUSH if view.unsent >= 8 else Action.DRAFT


def bare_ms_per_token(drafter: Drafter, length: int) -> float:
    """Feed and candidates, one token at a time, from the end of a sequence of the same length as a burst's."""
    tokens = [int(drafter.candidates().ids[0])]
    began_s = time.perf_counter()
    for _ in range(length - 1):
        drafter.feed(tokens[-1:])
        tokens.append(int(drafter.candidates().ids[0]))
    return (time.perf_counter() - began_s) * 1e3 / (length - 1)


def measure(spec: str, verifier: str, bursts: int, length: int) -> dict[str, Any]:
    """Medians for one drafter."""
    pace = Bursts(length)
    bare: list[float] = []
    probe = load_drafter(spec)
    assert probe is not None
    prompt = list(range(10, 74))
    with EdgeClient(verifier, spec, pace=lambda: pace) as client:
        params = SamplingParams(temperature=0.8, max_tokens=length // 4, ignore_eos=True)
        for seed in range(bursts):
            client.generate(chat(WARM_UP), params, seed=seed)
            probe.rollback(0)
            probe.feed(prompt)
            bare.append(bare_ms_per_token(probe, length))
        name = probe.info.name
    probe.close()
    riding, alone = statistics.median(pace.ms_per_token), statistics.median(bare)
    return {
        "drafter": name,
        "bare_ms_per_token": round(alone, 4),
        "riding_ms_per_token": round(riding, 4),
        "overhead_ms_per_token": round(riding - alone, 4),
        "bursts": len(pace.ms_per_token),
    }


@click.command(context_settings={"show_default": True})
@click.option("--drafter", "drafters", multiple=True, default=[str(DEMO / "drafter-onnx"), str(DEMO / "drafter.gguf")])
@click.option("--bursts", default=40)
@click.option("--length", default=64, help="Guesses per burst.")
@report.json_option()
def main(drafters: tuple[str, ...], bursts: int, length: int, json_file: Path | None) -> None:
    """Measure every drafter and print a table."""
    options = ["--max-lookahead", str(length), "--threads", "1"]
    with VerifierProcess(DEMO / "target", options=options) as verifier:
        results = [measure(spec, verifier.address, bursts, length) for spec in drafters]
    table = Table(*results[0])
    for result in results:
        table.add_row(*map(str, result.values()))
    print_whole(Console(), table)
    report.write(json_file, {"rows": results})


if __name__ == "__main__":
    main()
