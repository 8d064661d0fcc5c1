"""A step of `TorchEngine` on a CPU beside transformers' own `generate`: the same folder and threads, in turns.

Times of `generate` are those between two of its tokens, with its cache of keys and values. What many sessions take is
compared with the products of one such step alone, on the weights that the engine packed.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from benchmarks import report
from cloud_verifier.engines.base import Block, Sampler, SequenceId
from cloud_verifier.engines.torch_engine import TorchEngine, load
from netlab.console import print_whole
from speculation.sampling import SamplingParams

BARS = {"one row, of transformers'": 0.9, "16 rows, of one": 1.6, "many sessions, of their products": 2.0}
ROWS = (1, 2, 4, 8, 16)
CONTEXT = 64
NEW_TOKENS = 6
SESSIONS, BLOCK, LONG = 32, 4, 512  # many sessions: so many, tokens of each, and what each has read
_GREEDY = Sampler(SamplingParams(temperature=0.0), seed=0, prompt_length=0)


class _Clock(BaseStreamer):
    """When each token of `generate` came."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.at.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to do."""


def generated(model: PreTrainedModel, prompt: Sequence[int]) -> list[float]:
    """Milliseconds between the tokens of one answer."""
    clock = _Clock()
    ids = torch.tensor([prompt])
    length = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, streamer=clock, **length)  # type: ignore[operator]
    return [1e3 * (after - before) for before, after in zip(clock.at[1:], clock.at[2:], strict=False)]


def timed(work: Callable[[], object]) -> float:
    """Milliseconds of a call."""
    began = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - began)


class Subject:
    """The engine, with one sequence to step alone and many to step together."""

    def __init__(self, engine: TorchEngine, ids: Sequence[int]) -> None:
        self._engine, self._ids = engine, ids
        self._one = self._read(0, CONTEXT)
        self._many = [self._read(number + 1, LONG) for number in range(SESSIONS)]
        decoder = engine.decoder
        assert decoder is not None, "the engine does not run this model's layers in few calls"
        self._products = [p for one in decoder.layers for p in (one.projection, one.leave, one.gates, one.down)]
        self._head = decoder.head
        widths = [product.weight.shape[1] for product in (*self._products[:4], self._head)]
        self._inputs = [torch.randn(SESSIONS * BLOCK, width) for width in widths]

    def _read(self, number: int, tokens: int) -> SequenceId:
        sequence = self._engine.open(scope=str(number))  # nobody shares pages
        self._engine.step([Block(sequence, self._ids[number : number + tokens], 0, _GREEDY)])
        return sequence

    def rows(self, count: int) -> float:
        """Milliseconds of a step of one sequence with so many tokens, a choice after each."""
        block = Block(self._one, self._ids[:count], count, _GREEDY)
        took = timed(lambda: self._engine.step([block]))
        self._engine.truncate(self._one, CONTEXT)
        return took

    def together(self) -> float:
        """Of a step of all the many."""
        blocks = [Block(sequence, self._ids[:BLOCK], BLOCK, _GREEDY) for sequence in self._many]
        took = timed(lambda: self._engine.step(blocks))
        for sequence in self._many:
            self._engine.truncate(sequence, LONG)
        return took

    @torch.inference_mode()
    def products(self) -> float:
        """Of the products of such a step."""

        def multiply() -> None:
            for number, product in enumerate(self._products):
                product(self._inputs[number % 4])
            self._head(self._inputs[4])

        return timed(multiply)


def quartiles(values: Sequence[float]) -> list[float]:
    """The middle one between the two around it."""
    return [round(value, 2) for value in statistics.quantiles(values, n=4)]


def opened(model: Path, threads: int) -> tuple[float, TorchEngine]:
    """The engine, and how many seconds it took to be ready."""
    began = time.perf_counter()
    engine = load(
        str(model), device="cpu", threads=threads, max_sequences=SESSIONS + 1, context_limit=2 * LONG, remember=True
    )
    return time.perf_counter() - began, engine


def measured(model: Path, threads: int, rounds: int) -> dict[str, Any]:
    """All figures with so many threads."""
    torch.set_num_threads(threads)
    first = opened(model, threads)[0]  # nothing is remembered of it yet
    again, engine = opened(model, threads)
    chance = random.Random(3)
    ids = [chance.randrange(engine.info.vocabulary_size) for _ in range(LONG + SESSIONS + 1)]
    subject = Subject(engine, ids)
    own = {
        name: AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, one in own.items():
            times.setdefault(f"transformers {name}", []).append(statistics.median(generated(one, ids[:CONTEXT])))
        for rows in ROWS:
            took = statistics.median(subject.rows(rows) for _ in range(3))
            times.setdefault(f"{rows} rows", []).append(took)
        times.setdefault("many sessions", []).append(subject.together())
        times.setdefault("their products", []).append(subject.products())
    better = min(own, key=lambda name: statistics.median(times[f"transformers {name}"]))
    pairs = {
        "one row, of transformers'": ("1 rows", f"transformers {better}"),
        "16 rows, of one": ("16 rows", "1 rows"),
        "many sessions, of their products": ("many sessions", "their products"),
    }
    ratios = {
        name: quartiles([one / other for one, other in zip(times[of], times[to], strict=True)])
        for name, (of, to) in pairs.items()
    }
    return {
        "threads": threads,
        "ready_s": {"first start": round(first, 1), "later starts": round(again, 1)},
        "strict": engine.info.strict,
        "row_rule": str(engine.rows),
        "dtype": str(engine.model.dtype),
        "ms": {name: quartiles(found) for name, found in times.items()},
        "ratios_in_rounds": ratios,
    }


@click.command(context_settings={"show_default": True})
@click.option("--model", required=True, type=click.Path(path_type=Path, exists=True, file_okay=False), help="Folder.")
@click.option("--threads", multiple=True, default=(1, 2), type=click.IntRange(1))
@click.option("--rounds", default=9, type=click.IntRange(2))
@report.json_option()
def main(model: Path, threads: tuple[int, ...], rounds: int, json_file: Path | None) -> None:
    """Measure strict steps beside transformers' `generate`, and hold them against the bars."""
    load_before = os.getloadavg()[0]
    with TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        found = [measured(model, each, rounds) for each in threads]
    console = Console()
    for one in found:
        title = f"{model.name}, {one['threads']} threads, {one['dtype']}, strict: {one['strict']} ({one['row_rule']})"
        title += f", ready after {' s, later after '.join(map(str, one['ready_s'].values()))} s"
        table = Table("", "quartiles", "bar", title=title, title_justify="left")
        for name, values in one["ms"].items():
            table.add_row(f"{name}, ms", str(values))
        for name, values in one["ratios_in_rounds"].items():
            table.add_row(name, str(values), str(BARS[name]))
        print_whole(console, table)
    report.write(
        json_file,
        {
            "model": model.name,
            "settings": {"rounds": rounds, "context_tokens": CONTEXT, "sessions": [SESSIONS, BLOCK, LONG]},
            "load_average_before": round(load_before, 2),
            "bars": BARS,
            "found": found,
        },
    )


if __name__ == "__main__":
    main()
