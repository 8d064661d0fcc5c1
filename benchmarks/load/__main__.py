"""`python -m benchmarks.load`: how many sessions one verifier holds at a time per output token.

First in the simulator, at several objectives; then on a real verifier over real sockets, at one. The emulated GPU's
step times are arithmetic on data sheets (`profile`), and the real trials are played in slow motion, so that the
emulated GPU is the limit and not this machine; where the machine was, the command says so and fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import report
from benchmarks.load import real, simulated
from benchmarks.load.outcome import MODES, Goal, Outcome
from benchmarks.load.profile import MemoryBound
from benchmarks.load.record import record
from benchmarks.load.search import most_held
from benchmarks.load.simulated import Setting
from benchmarks.load.verifier import LoadVerifier, VerifierSetup
from netlab.console import print_whole

OBJECTIVES_MS = (26.0, 30.0, 36.0, 45.0)
ANSWERS = 24
RESOLUTION, QUICK_RESOLUTION = 0.04, 0.15
GUESSES = {"streaming": 1.0, "latency": 2.5, "balanced": 2.5, "capacity": 2.5}


def streaming_guess(profile: MemoryBound, objective_ms: float) -> int:
    """Sessions whose keys and values can be read in what the weights leave of the objective."""
    return max(1, int((objective_ms - profile.base_ms) / profile.per_session_ms))


def simulated_search(mode: str, goal: Goal, setting: Setting, resolution: float) -> tuple[int, list[Outcome]]:
    """Most sessions held, and the trials that found it."""
    trials: list[Outcome] = []

    def held(sessions: int) -> bool:
        trials.append(simulated.trial(mode, sessions, setting))
        return trials[-1].held(goal)

    guess = round(streaming_guess(setting.profile, goal.objective_ms) * GUESSES[mode])
    return most_held(held, guess, setting.profile.max_sessions, resolution), trials


def ratios(sessions: dict[str, int]) -> dict[str, float | None]:
    """Of every mode but streaming to it; None where streaming holds nobody."""
    streaming = sessions["streaming"]
    return {mode: round(n / streaming, 2) if streaming else None for mode, n in sessions.items() if mode != "streaming"}


def table(title: str, rows: dict[str, dict[str, int]]) -> Table:
    """Sessions, and in brackets their ratio to streaming's. rows: by objective, then by mode."""
    shown = Table("ms per token", *MODES, title=title, title_justify="left")
    for objective, sessions in rows.items():
        over = ratios(sessions)
        cells = [f"{n} ({over[mode]}x)" if mode in over else str(n) for mode, n in sessions.items()]
        shown.add_row(objective, *cells)
    return shown


def real_search(
    goal: Goal, setting: Setting, guesses: dict[str, int], slow_motion: float, resolution: float, progress: Progress
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Most sessions held by mode, and all trials."""
    found: dict[str, int] = {}
    trials: list[dict[str, Any]] = []
    task = progress.add_task("the target writes answers", total=None)
    written = record(ANSWERS, lambda length: progress.update(task, completed=length))
    progress.update(task, total=1, completed=1)
    with LoadVerifier(
        VerifierSetup(written, setting.profile, slow_motion, chunk_tokens=setting.chunk_tokens)
    ) as verifier:
        for mode in MODES:
            task = progress.add_task(mode, total=None)

            def held(sessions: int, mode: str = mode, task: Any = task) -> bool:
                progress.update(task, description=f"{mode}, {sessions} sessions")
                one, figures = real.trial(mode, sessions, setting, verifier, written, slow_motion)
                trials.append(one.as_json() | {name: round(value, 4) for name, value in figures.items()})
                if one.wrong_words:
                    raise click.ClickException(f"{one.wrong_words} answers were not the target's own words")
                return one.held(goal)

            found[mode] = most_held(held, guesses[mode], setting.profile.max_sessions, resolution)
            progress.update(task, description=f"{mode}: {found[mode]} sessions", total=1, completed=1)
    return found, trials


@click.command(context_settings={"show_default": True})
@click.option("--objective-ms", default=30.0, type=click.FloatRange(1.0), help="Time per output token to be kept.")
@click.option("--ttft-ms", default=1000.0, type=click.FloatRange(1.0), help="Time to the first token to be kept.")
@click.option("--rtt-ms", default=50.0, type=click.FloatRange(0.0))
@click.option("--draft-ms", default=5.0, type=click.FloatRange(0.1), help="Of a device, per guess.")
@click.option("--acceptance", default=0.8, type=click.FloatRange(0.0, 1.0), help="Share of right guesses.")
@click.option("--weights-ms", default=MemoryBound.base_ms, type=click.FloatRange(0.1), help="To read the weights.")
@click.option("--position-ms", default=MemoryBound.per_position_ms, type=click.FloatRange(0.0001), help="Arithmetic.")
@click.option("--session-ms", default=MemoryBound.per_session_ms, type=click.FloatRange(0.0001), help="To read its KV.")
@click.option(
    "--max-sessions", default=MemoryBound.max_sessions, type=click.IntRange(1), help="Whose KV there is room for."
)
@click.option("--slow-motion", default=3.0, type=click.FloatRange(1.0), help="Times as slow as life, real trials only.")
@click.option("--simulate", is_flag=True, help="In the simulator only.")
@click.option("--quick", is_flag=True, help="Short trials, coarse search: to see it work.")
@click.option("--jobs", default=os.cpu_count(), type=click.IntRange(1), help="Processes for the simulator.")
@report.json_option()
def main(
    objective_ms: float,
    ttft_ms: float,
    rtt_ms: float,
    draft_ms: float,
    acceptance: float,
    weights_ms: float,
    position_ms: float,
    session_ms: float,
    max_sessions: int,
    slow_motion: float,
    simulate: bool,
    quick: bool,
    jobs: int,
    json_file: Path | None,
) -> None:
    """Search for the most sessions held, and print them as multiples of streaming's."""
    profile = MemoryBound(weights_ms, position_ms, session_ms, max_sessions)
    setting = Setting(profile, rtt_ms, draft_ms, acceptance)
    resolution = QUICK_RESOLUTION if quick else RESOLUTION
    if quick:
        setting = replace(setting, warm_ms=1500.0, watch_ms=3500.0)
        slow_motion = min(slow_motion, 2.0)
    if streaming_guess(profile, objective_ms) <= 1:
        raise click.UsageError(
            f"{objective_ms:g} ms per token leave a step of {weights_ms:g} ms no room; give a larger --objective-ms"
        )
    console = Console()
    objectives = {objective_ms} if quick else {objective_ms, *OBJECTIVES_MS}
    goals = [Goal(each, ttft_ms) for each in sorted(objectives) if each > weights_ms]
    with Progress(console=console) as progress:
        predicted = _predict(goals, setting, resolution, jobs, progress.track)
        print_whole(console, table("Sessions held, in the simulator", predicted))
        figures: dict[str, Any] = {
            "settings": asdict(setting) | {"ttft_ms": ttft_ms, "slow_motion": slow_motion, "quick": quick},
            "emulated": "step times of Qwen3-32B on two A100-80GB by data sheet, contexts of 4,096 tokens"
            if profile == MemoryBound()
            else "step times as given",
            "devices": "one process drives all sessions; guesses are ids of the demo target, right as often as said",
            "objective_ms": objective_ms,
            "simulated": {name: {"sessions": n, "ratio_to_streaming": ratios(n)} for name, n in predicted.items()},
        }
        if not simulate:
            guesses = predicted[f"{objective_ms:g}"]
            goal = Goal(objective_ms, ttft_ms)
            found, trials = real_search(goal, setting, guesses, slow_motion, resolution, progress)
            figures |= {"sessions": found, "ratio_to_streaming": ratios(found), "trials": trials}
    troubles: list[str] = []
    if not simulate:
        print_whole(console, table("Sessions held, on a real verifier", {f"{objective_ms:g}": found}))
        troubles = sorted({one["trouble"] for one in trials if one["trouble"]})
        figures["machine_was_the_limit"] = troubles
    report.write(json_file, figures)
    if troubles:
        raise click.ClickException(
            f"this machine, not the emulated GPU, was the limit in some trials ({'; '.join(troubles)}); try it on a "
            "quiet machine, or with a larger --slow-motion"
        )


def _predict(
    goals: list[Goal], setting: Setting, resolution: float, jobs: int, track: Callable[..., Any]
) -> dict[str, dict[str, int]]:
    """By objective and mode."""
    cases = [(goal, mode) for goal in goals for mode in MODES]
    with ProcessPoolExecutor(jobs) as pool:
        searches = [pool.submit(simulated_search, mode, goal, setting, resolution) for goal, mode in cases]
        found = [search.result()[0] for search in track(searches, description="in the simulator")]
    rows: dict[str, dict[str, int]] = {}
    for (goal, mode), sessions in zip(cases, found, strict=True):
        rows.setdefault(f"{goal.objective_ms:g}", {})[mode] = sessions
    return rows


if __name__ == "__main__":
    main()
