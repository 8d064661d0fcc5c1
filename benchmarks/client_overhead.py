"""What the riding loop costs per drafted token beyond the bare drafter.

A real session against a real verifier that waits for guesses drafts them at T = 0.8, sending them in blocks as always;
the bare drafter then evaluates tokens one after the other. Both take turns. A guess costs the median time between two
questions to the pace where it drafted, and its share of the median time in which it sent: reading after a wrong guess,
which a bare drafter does not do, is left out. `loop_cpu_ms_per_token` is the processor time of the drafting thread
without its calls into the drafter: what the loop itself costs, whoever else uses the processor.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
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


class DrafterClock:
    """Takes the processor time of a drafter's calls on their thread."""

    def __init__(self, drafter: Drafter) -> None:
        self._ms = 0.0
        for name in ("feed", "candidates"):
            setattr(drafter, name, self._timed(getattr(drafter, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            began_s = time.thread_time()
            try:
                return call(*arguments)
            finally:
                self._ms += (time.thread_time() - began_s) * 1e3

        return timed

    def read_ms(self) -> float:
        """Since it was read last."""
        took_ms, self._ms = self._ms, 0.0
        return took_ms


class Blocks(Pace):
    """Draft at most so many guesses ahead, and send every eight. Keeps how long each took, in milliseconds."""

    name = "blocks"
    patience_ms = PATIENCE_UNLIMITED_MS
    BLOCK = 8

    def __init__(self, depth: int, clock: DrafterClock) -> None:
        self.depth, self._clock = depth, clock
        self.loop_cpu_ms: dict[Action, list[float]] = {action: [] for action in Action}  # without the drafter
        self.took_ms: dict[Action, list[float]] = {action: [] for action in Action}
        self._latest: tuple[Action, float, float] | None = None

    def next(self, view: View) -> Action:
        now_s, cpu_s = time.perf_counter(), time.thread_time()
        if self._latest is not None:
            action, began_s, cpu_began_s = self._latest
            self.took_ms[action].append((now_s - began_s) * 1e3)
            self.loop_cpu_ms[action].append((cpu_s - cpu_began_s) * 1e3 - self._clock.read_ms())
        drafts = view.can_draft and view.depth < self.depth and view.unsent < self.BLOCK
        action = Action.DRAFT if drafts else Action.FLUSH if view.unsent else Action.WAIT
        self._latest = action, time.perf_counter(), time.thread_time()
        return action

    def per_token(self, times_ms: dict[Action, list[float]]) -> float:
        """Of a guess and its part of sending a block."""
        return statistics.median(times_ms[Action.DRAFT]) + statistics.median(times_ms[Action.FLUSH]) / self.BLOCK


def bare_ms(drafter: Drafter, length: int) -> list[float]:
    """Feed and candidates, one token at a time, from the end of a sequence about as long as a session's."""
    token = int(drafter.candidates().ids[0])
    took_ms = []
    for _ in range(length):
        began_s = time.perf_counter()
        drafter.feed([token])
        token = int(drafter.candidates().ids[0])
        took_ms.append((time.perf_counter() - began_s) * 1e3)
    return took_ms


def measure(spec: str, verifier: str, answers: int, length: int) -> dict[str, Any]:
    """Medians for one drafter."""
    bare: list[float] = []
    probe, drafter = load_drafter(spec), load_drafter(spec)
    assert probe is not None
    assert drafter is not None
    pace = Blocks(length, DrafterClock(drafter))
    prompt = list(range(10, 74))
    with EdgeClient(verifier, drafter, pace=lambda: pace) as client:
        params = SamplingParams(temperature=0.8, max_tokens=2 * length, ignore_eos=True)
        for seed in range(answers):
            client.generate(chat(WARM_UP), params, seed=seed)
            probe.rollback(0)
            probe.feed(prompt)
            bare += bare_ms(probe, length)
        name = probe.info.name
    probe.close()
    riding, alone = pace.per_token(pace.took_ms), statistics.median(bare)
    return {
        "drafter": name,
        "bare_ms_per_token": round(alone, 4),
        "riding_ms_per_token": round(riding, 4),
        "overhead_ms_per_token": round(riding - alone, 4),
        "loop_cpu_ms_per_token": round(pace.per_token(pace.loop_cpu_ms), 4),
        "guesses": len(pace.took_ms[Action.DRAFT]),
    }


@click.command(context_settings={"show_default": True})
@click.option("--drafter", "drafters", multiple=True, default=[str(DEMO / "drafter-onnx"), str(DEMO / "drafter.gguf")])
@click.option("--answers", default=20)
@click.option("--length", default=64, help="Most guesses ahead; an answer has twice as many tokens.")
@report.json_option()
def main(drafters: tuple[str, ...], answers: int, length: int, json_file: Path | None) -> None:
    """Measure every drafter and print a table."""
    options = ["--max-lookahead", str(length), "--threads", "1"]
    with VerifierProcess(DEMO / "target", options=options) as verifier:
        results = [measure(spec, verifier.address, answers, length) for spec in drafters]
    table = Table(*results[0])
    for result in results:
        table.add_row(*map(str, result.values()))
    print_whole(Console(), table)
    report.write(json_file, {"rows": results})


if __name__ == "__main__":
    main()
