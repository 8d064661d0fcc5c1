"""`make demo`: the main job end to end, on one machine, with real parts.

A verifier with a target, an emulated network, a drafter on the device's side, and the same prompts decoded three ways
over that network: streaming (no drafts), synchronous rounds (the best draft length of a small sweep), and Outrider.
The models are the demo pair, which is here, or with --model smollm2 a real language model, fetched and made once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from outrider_cli.outputs import OutputFile

# Two OpenMP pools that spin on one machine starve each other: a 20 ms step then takes most of a second.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from edge_client.drafters.base import DrafterError
from edge_client.types import StreamChunk
from netlab import prompts as prompt_sets
from netlab import provenance
from netlab.console import print_whole
from netlab.experiments import rig
from netlab.link_process import LinkProcess
from netlab.link_settings import LinkSettings
from netlab.race import SWEEP, Figures, Lane, by_task, chat, ignore, interleaved, open_lanes, same_words
from netlab.race_view import Pane, Pieces, RaceView, draw, table, task_table
from netlab.smollm2.package import PackageError
from netlab.verifier_process import VerifierProcess, VerifierProcessError
from speculation.sampling import SamplingParams

OUTRIDER = "Outrider"
DEMO, SMOLLM2 = "demo", "smollm2"
WAYS = {"streaming": "streaming", "sync": "sync", OUTRIDER: "adaptive"}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--rtt-ms", default=50.0, type=click.FloatRange(0, 10_000), help="Round trip of the emulated network.")
@click.option("--jitter-ms", default=0.0, type=click.FloatRange(0, 1000), help="Extra delay, uniform from 0 to this.")
@click.option(
    "--step-ms", default=30.0, type=click.FloatRange(0), help="Least time of a target step: emulates its size."
)
@click.option("--temperature", default=0.8, type=click.FloatRange(0), help="0 takes the likeliest token.")
@click.option("--seed", default=7, type=click.IntRange(0, 2**64 - 1), help="Same seed, same words.")
@click.option("--prompts", default=6, type=click.IntRange(1, 1000), help="How many prompts to race over.")
@click.option("--prompt-set", help="demo, tasks or a TOML file.  [default: demo; tasks with --model smollm2]")
@click.option("--max-tokens", default=96, type=click.IntRange(2, 512), help="Tokens per answer.")
@click.option(
    "--model", default=DEMO, type=click.Choice([DEMO, SMOLLM2]), help="The pair; smollm2 is fetched the first time."
)
@click.option("--target", type=click.Path(path_type=Path), help="Another target: a model folder.")
@click.option("--drafter", help="Another drafter: a GGUF file, an ONNX folder, ngram...")
@click.option("--json", "json_file", type=OutputFile(), help="Write the figures here.")
@click.option("--svg", "svg_file", type=OutputFile(), help="Draw the race's finish here.")
def main(json_file: Path | None, svg_file: Path | None, **options: Any) -> None:
    """Race streaming, synchronous rounds and Outrider over an emulated network."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the verifier ends with it
    console = Console()
    try:
        report = Demo(console, svg_file, **options).run()
    except (VerifierProcessError, PackageError, prompt_sets.PromptSetError, DrafterError) as error:
        raise click.ClickException(str(error)) from error
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n")
        console.print(f"figures written to {json_file}")
    if not report["same_words"]:
        raise SystemExit(1)


def _demo_pair() -> tuple[Path, str]:
    return rig.DEMO / "target", str(rig.DEMO / "drafter-onnx")


def _smollm2(console: Console) -> tuple[Path, str]:
    from netlab.smollm2 import pair

    made = pair.prepare(pair.SMOLLM2, console)
    return made.target, str(made.drafter)


class Demo:
    """One run of the demo."""

    def __init__(
        self,
        console: Console,
        svg_file: Path | None = None,
        *,
        rtt_ms: float,
        jitter_ms: float,
        step_ms: float,
        temperature: float,
        seed: int,
        prompts: int,
        prompt_set: str | None,
        max_tokens: int,
        model: str,
        target: Path | None,
        drafter: str | None,
    ) -> None:
        """Raises PromptSetError, and PackageError if the model cannot be had."""
        self._console, self._svg_file = console, svg_file
        self._link_settings = LinkSettings.of_rtt(rtt_ms, jitter_ms=jitter_ms)
        self._rtt_ms, self._step_ms, self._seed = rtt_ms, step_ms, seed
        demo = model == DEMO
        asked = prompt_sets.find(prompt_set or (prompt_sets.DEMO if demo else prompt_sets.TASKS)).first(prompts)
        self._model, self._prompts, self._tasks = model, asked.prompts, asked.tasks
        their_target, their_drafter = _demo_pair() if demo else _smollm2(console)
        self._target, self._drafter = target or their_target, drafter or their_drafter
        # The demo pair writes both sides of the conversation: its own answers are too short to race over.
        self._params = SamplingParams(temperature=temperature, max_tokens=max_tokens, ignore_eos=demo)

    def run(self) -> dict[str, Any]:
        """Start everything, race, print the table; returns the report."""
        with contextlib.ExitStack() as stack:
            status = stack.enter_context(self._console.status("starting the verifier with its target"))
            options = ["--step-ms", str(self._step_ms), "--threads", "1", "--max-sessions", "8"]
            verifier = stack.enter_context(VerifierProcess(self._target, options=options))
            link = stack.enter_context(LinkProcess(("127.0.0.1", verifier.port), self._link_settings))
            status.update("loading the drafter and warming up")
            lanes = stack.enter_context(open_lanes(f"127.0.0.1:{link.port}", lambda: self._drafter, WAYS))
            for notice in (notice for lane in lanes for notice in lane.client.notices):
                self._console.print(f"[yellow]{notice}")
            status.update(f"finding the best draft length for synchronous rounds among {', '.join(map(str, SWEEP))}")
            for lane in lanes:
                lane.tune(self._params, self._seed)
            status.stop()
            self._race(lanes, link)
        print_whole(self._console, table(lanes))
        if len(set(self._tasks)) > 1:
            print_whole(self._console, task_table(lanes, self._tasks))
        return self._report(lanes)

    # -- racing ------------------------------------------------------------------------------------------------------

    def _race(self, lanes: list[Lane], link: LinkProcess) -> None:
        if not self._console.is_terminal and self._svg_file is None:
            self._measure(lanes, link, lambda _lane, _index: ignore, self._line)
            return
        pieces = Pieces(str(self._target / "tokenizer.json"))
        panes = {lane.name: Pane(lane.title, pieces) for lane in lanes}
        view = RaceView(self._console, list(panes.values()), len(lanes) * len(self._prompts))
        with Live(view, console=self._console, refresh_per_second=20, transient=False):
            view.headline = Text(f"all three at once: {self._prompts[0]}", "bold")
            self._all_at_once(lanes, panes, view)

            def begin(lane: Lane, index: int) -> Callable[[StreamChunk], None]:
                view.headline = Text(f"one at a time, to be measured: {self._prompts[index]}", "bold")
                panes[lane.name].clear()
                return panes[lane.name].take

            self._measure(lanes, link, begin, lambda _lane, _index: view.progress.advance(view.task))

    def _all_at_once(self, lanes: list[Lane], panes: dict[str, Pane], view: RaceView) -> None:
        """The race to look at: in one batch of the server. What is measured runs alone."""

        def run(lane: Lane) -> None:
            lane.answer(chat(self._prompts[0]), self._params, self._seed, panes[lane.name].take)
            if lane.name == OUTRIDER and self._svg_file is not None:
                draw(self._svg_file, view)

        threads = [threading.Thread(target=run, args=(lane,)) for lane in lanes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _measure(
        self,
        lanes: list[Lane],
        link: LinkProcess,
        begin: Callable[[Lane, int], Callable[[StreamChunk], None]],
        end: Callable[[Lane, int], object],
    ) -> None:
        for lane, index in interleaved(lanes, self._prompts):
            lane.measure(link, chat(self._prompts[index]), self._params, self._seed + index, begin(lane, index))
            end(lane, index)

    def _line(self, lane: Lane, index: int) -> None:
        metrics = lane.runs[-1].output.metrics
        self._console.print(
            f"prompt {index + 1} of {len(self._prompts)}, {lane.title}: {metrics.total_ms / 1000:.2f} s, "
            f"{metrics.ms_per_token:.1f} ms per token"
        )

    # -- reporting ---------------------------------------------------------------------------------------------------

    def _report(self, lanes: list[Lane]) -> dict[str, Any]:
        figures = {lane.name.lower(): Figures.of(lane.runs) for lane in lanes}
        same = same_words(lanes)
        speed_up = figures["streaming"].ms_per_token / figures["outrider"].ms_per_token
        self._console.print(
            f"Outrider takes {1 / speed_up:.0%} of streaming's time per token ({speed_up:.2f} times as fast) "
            f"at {self._rtt_ms:g} ms round trip and {self._step_ms:g} ms per target step."
        )
        total = sum(len(run.output.token_ids) for run in lanes[0].runs)
        verdict = f"[green]same words: all {total} tokens equal" if same else "[red bold]DIFFERENT WORDS: this is a bug"
        self._console.print(f"{verdict} in all three ways of decoding")
        return {
            "commit": provenance.commit(),
            "date": provenance.today(),
            "hardware": provenance.hardware(),
            "rtt_ms": self._rtt_ms,
            "step_ms": self._step_ms,
            "temperature": self._params.temperature,
            "seed": self._seed,
            "model": self._model,
            "prompts": len(self._prompts),
            "sync_draft_tokens": next((lane.best_sync.draft_tokens for lane in lanes if lane.best_sync), None),
            "same_words": same,
            "modes": {name: value.as_json() for name, value in figures.items()},
            "ms_per_token_by_task": {lane.name.lower(): by_task(lane.runs, self._tasks) for lane in lanes},
        }


if __name__ == "__main__":
    main()
