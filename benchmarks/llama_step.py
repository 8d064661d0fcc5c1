"""A step of `LlamaCppEngine` beside llama.cpp's own loop: the same file, tokens and threads, in turns.

The loop is that of llama-cpp-python's `Llama`: `eval` of one token, then its best one. Both evaluate the same tokens at
the same positions, one after the other, so what else the machine does meets both.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import llama_cpp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import report
from cloud_verifier.engines.base import Block, Sampler, SequenceId
from cloud_verifier.engines.llama_cpp.engine import LlamaCppEngine
from cloud_verifier.engines.llama_cpp.load import LlamaCppSettings, load
from netlab.console import print_whole
from speculation.sampling import SamplingParams

BAR = 1.05
ROWS = (1, 2, 4, 8, 16)
_GREEDY = Sampler(SamplingParams(temperature=0.0), seed=0, prompt_length=0)


class Times(NamedTuple):
    """Of one call, in ms: by the clock, and of the processor, which other processes disturb less."""

    wall: float
    cpu: float


def timed(work: Callable[[], object]) -> Times:
    """Time a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Times((time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3)


class Loop:
    """llama.cpp's own."""

    def __init__(self, path: Path, context: Sequence[int], threads: int) -> None:
        self._llama = llama_cpp.Llama(str(path), n_ctx=8192, n_threads=threads, flash_attn=True, verbose=False)
        self._llama.eval(list(context))

    def step(self, token: int) -> int:
        """Evaluate a token; the best one after it."""
        self._llama.eval([token])
        logits = np.ctypeslib.as_array(self._llama._ctx.get_logits(), (self._llama.n_vocab(),))
        return int(logits.argmax())


class Subject:
    """The engine, with one sequence."""

    def __init__(self, engine: LlamaCppEngine, context: Sequence[int]) -> None:
        self._engine = engine
        self._sequence: SequenceId = engine.open()
        engine.step([Block(self._sequence, context, 0, _GREEDY)])

    def step(self, tokens: Sequence[int]) -> None:
        """Evaluate a block, with the choice after each token."""
        self._engine.step([Block(self._sequence, tokens, len(tokens), _GREEDY)])

    def back(self, tokens: int) -> None:
        """Take so many back."""
        self._engine.truncate(self._sequence, self._engine.length(self._sequence) - tokens)


def quartiles(values: Sequence[float]) -> list[float]:
    """The middle one between the two around it."""
    return [round(value, 3) for value in statistics.quantiles(values, n=4)]


def compared(subject: Subject, loop: Loop, ids: Sequence[int]) -> dict[str, Any]:
    """Steps of one row, ours and theirs in turns, the first of a pair by turns."""
    ours: list[Times] = []
    theirs: list[Times] = []
    for number, token in enumerate(ids):
        for mine in (number % 2 == 0, number % 2 == 1):
            if mine:
                ours.append(timed(partial(subject.step, [token])))
            else:
                theirs.append(timed(partial(loop.step, token)))
    found: dict[str, Any] = {}
    for kind, engine, own in zip(Times._fields, zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        found[kind] = {
            "engine_ms": quartiles(engine),
            "own_loop_ms": quartiles(own),
            "ratio_of_medians": round(statistics.median(engine) / statistics.median(own), 3),
            "ratio_in_pairs": quartiles([one / other for one, other in zip(engine, own, strict=True)]),
        }
    return found


def by_rows(subject: Subject, ids: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Blocks of several rows, taken back after each, the numbers of rows in turns."""
    times: dict[int, list[Times]] = {rows: [] for rows in ROWS}
    for number in range(rounds):
        for rows in ROWS:
            block = ids[number : number + rows]
            times[rows].append(timed(partial(subject.step, block)))
            subject.back(rows)
    cpu = {rows: [each.cpu for each in found] for rows, found in times.items()}
    alone = statistics.median(cpu[1])
    return [
        {
            "rows": rows,
            "wall_ms": quartiles([each.wall for each in found]),
            "cpu_ms": quartiles(cpu[rows]),
            "cpu_of_one_row": round(statistics.median(cpu[rows]) / alone, 2),
        }
        for rows, found in times.items()
    ]


@click.command(context_settings={"show_default": True})
@click.option("--model", required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False), help="GGUF.")
@click.option("--threads", default=1, type=click.IntRange(1))
@click.option("--context-tokens", default=128, type=click.IntRange(1), help="Read before.")
@click.option("--steps", default=150, type=click.IntRange(4), help="Of one row, of each.")
@click.option("--rounds", default=25, type=click.IntRange(4), help="Of blocks.")
@report.json_option()
def main(model: Path, threads: int, context_tokens: int, steps: int, rounds: int, json_file: Path | None) -> None:
    """Measure a step of one row beside llama.cpp's own, and what more rows cost."""
    load_before = os.getloadavg()[0]
    engine = load(model, LlamaCppSettings(threads=threads, max_sequences=4, context_limit=2048))
    chance = random.Random(3)
    ids = [chance.randrange(engine.info.vocabulary_size) for _ in range(max(steps, rounds + max(ROWS)))]
    context = [chance.randrange(engine.info.vocabulary_size) for _ in range(context_tokens)]
    subject, loop = Subject(engine, context), Loop(model, context, threads)
    pairs = compared(subject, loop, ids[:steps])
    subject.back(steps)
    rows = by_rows(subject, ids, rounds)
    figures = {
        "model": model.name,
        "settings": {"threads": threads, "context_tokens": context_tokens, "steps": steps, "rounds": rounds},
        "load_average_before": round(load_before, 2),
        "strict": engine.info.strict,
        "row_rule": str(engine.rows),
        "bar": BAR,
        "one_row": pairs,
        "rows": rows,
    }
    console = Console()
    console.print(f"{model.name}, {threads} threads, strict: {engine.info.strict} ({engine.rows}); the bar is {BAR}")
    for title, lines in (("One row", [{"time": kind} | one for kind, one in pairs.items()]), ("Blocks", rows)):
        table = Table(*(name.replace("_", " ") for name in lines[0]), title=title, title_justify="left")
        for line in lines:
            table.add_row(*map(str, line.values()))
        print_whole(console, table)
    report.write(json_file, figures)


if __name__ == "__main__":
    main()
