"""The time of one step of the target against its limits: bytes to read over the device's copy bandwidth, products over
its rate of matrix products.

Weights are random, in the shapes of real models: what a step costs does not depend on what they say. The same tokens
are stepped with and without CUDA graphs, in strict mode and not, and the words compared. What matters most is measured
first, and everything is written down as soon as it is known, so that a run that is cut short has said something. On a
CPU the tiny shape shows that the benchmark runs; its figures say nothing about a GPU.
"""

from __future__ import annotations

import gc
import json
import logging
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from benchmarks import report
from cloud_verifier.engines.base import Block, EngineFull, ModelError, Sampler, SequenceId
from cloud_verifier.engines.pages import PAGE_TOKENS
from cloud_verifier.engines.torch_engine import TorchEngine
from cloud_verifier.engines.torch_engine.engine import OutOfMemory
from cloud_verifier.engines.torch_engine.fast_path import Parts
from cloud_verifier.engines.torch_engine.kernels import GATHERED
from cloud_verifier.engines.torch_engine.load import wrap
from netlab.console import print_whole
from speculation.sampling import SamplingParams

# The published configurations, as far as they decide what a step costs.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-3.1-8b": (
        "Llama",
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
        },
    ),
    "qwen3-1.7b": (
        "Qwen3",
        {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 40960,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
        },
    ),
    "tiny": (
        "Llama",
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 16384,
        },
    ),
}
COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 26}
PRODUCT_SIZE = {"cuda": 8192, "cpu": 512}
SAMPLER = Sampler(SamplingParams(temperature=0.8), seed=9, prompt_length=0)
REAL_SHAPES = ("llama-3.1-8b", "qwen3-1.7b")


@dataclass(frozen=True)
class Plan:
    """What to measure: all of sessions x drafts x contexts, in each mode."""

    sessions: tuple[int, ...]
    drafts: tuple[int, ...]
    contexts: tuple[int, ...]
    steps: int
    warm_ups: int

    def cells(self) -> list[tuple[int, int, int]]:
        """(sessions, context, drafts), those first whose figures the bar asks for: few sessions, short contexts."""
        return [
            (sessions, context, drafts)
            for sessions in sorted(self.sessions)
            for context in sorted(self.contexts)
            for drafts in self.drafts
        ]

    @property
    def room(self) -> int:
        """Tokens that a step adds to a sequence at most."""
        return max(self.drafts) + 1


@dataclass(frozen=True)
class Mode:
    """How the engine runs."""

    strict: bool
    graphs: bool

    def __str__(self) -> str:
        return f"{'strict' if self.strict else 'free'}{', graphs' if self.graphs else ''}"


@dataclass(frozen=True)
class Device:
    """What the device does at its best: bytes of a copy and operations of a matrix product, per second."""

    place: torch.device
    bytes_per_s: float
    operations_per_s: float


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed_ms(
    function: Callable[[], object], device: torch.device, times: int, after: Callable[[], None] = lambda: None
) -> list[float]:
    """Wall time of each call, the device's work included, in ms, sorted. after: is called after each, untimed."""
    taken = []
    for _ in range(times):
        wait(device)
        began = time.perf_counter()
        function()
        wait(device)
        taken.append((time.perf_counter() - began) * 1000.0)
        after()
    return sorted(taken)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second that a copy reads and writes, together: the best of some."""
    size = COPY_BYTES[device.type]
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
    for _ in range(3):
        target.copy_(source)
    return 2 * size / (timed_ms(lambda: target.copy_(source), device, 20)[0] / 1000.0)


def product_rate(device: torch.device) -> float:
    """Operations per second of a large matrix product of random numbers in the model's precision."""
    size = PRODUCT_SIZE[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    timed_ms(lambda: one @ other, device, 3)
    return 2.0 * size**3 / (timed_ms(lambda: one @ other, device, 10)[0] / 1000.0)


def build(shape: str, device: torch.device) -> PreTrainedModel:
    """A model of this shape with random weights, bfloat16 on a GPU, float32 on a CPU."""
    name, settings = SHAPES[shape]
    config = getattr(transformers, f"{name}Config")(**settings)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model: PreTrainedModel = getattr(transformers, f"{name}ForCausalLM")(config)
    finally:
        torch.set_default_dtype(before)
    return model


def read_bytes(model: PreTrainedModel) -> int:
    """Of the weights that every step reads: all but an embedding table that is not the head too."""
    tied = bool(model.config.tie_word_embeddings)
    table = model.get_input_embeddings().weight
    assert isinstance(table, torch.Tensor)
    return sum(parameter.nbytes for parameter in model.parameters()) - (0 if tied else table.nbytes)


def kv_bytes_per_token(engine: TorchEngine) -> int:
    """Of keys and values, in all layers."""
    return sum(layer.keys[0].nbytes + layer.values[0].nbytes for layer in engine._pool._paged) // PAGE_TOKENS


def pretend(engine: TorchEngine, opened: list[SequenceId], sessions: int, context: int, room: int) -> None:
    """Open sequences up to so many, each of `context` tokens and with room for more, with noise of its own for keys.

    A million tokens of prefill would show nothing else: what a step costs does not depend on what was computed.
    """
    for number in range(len(opened), sessions):
        text = random.Random(number).choices(range(engine.info.vocabulary_size), k=context)
        sequence = engine.open()
        opened.append(sequence)
        engine.reserve(sequence, context + room)
        table = engine._find(sequence)
        engine._pages.extend(table, text)
        with torch.inference_mode():
            for group in engine._pool._groups:
                noise = torch.Generator(group.device).manual_seed(number)
                shape = (group.shape[0], len(table.pages), *group.shape[2:])
                group[:, table.pages] = torch.randn(shape, generator=noise, dtype=group.dtype, device=group.device)


def blocks_of(engine: TorchEngine, opened: list[SequenceId], drafts: int) -> list[Block]:
    """A step of all sessions: a token of each and its drafts, to be chosen after every one."""
    ids = range(engine.info.vocabulary_size)
    return [
        Block(sequence, random.Random(-number - 1).choices(ids, k=drafts + 1), drafts + 1, SAMPLER)
        for number, sequence in enumerate(opened)
    ]


def take_back(engine: TorchEngine, opened: list[SequenceId], context: int, room: int) -> None:
    """As it was before a step: the scheduler's work, so not measured here."""
    for sequence in opened:
        engine.truncate(sequence, context)
        engine.reserve(sequence, room)


Words = dict[tuple[int, int, int], list[tuple[int, ...]]]


@dataclass
class Findings:
    """All that is known so far of one shape."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    words: dict[Mode, Words] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)  # by "strict" and "free": what the engine is made of

    def summary(self) -> dict[str, Any]:
        """What the bar asks for."""
        measured = [row for row in self.rows if "step_ms" in row]
        graphs = any(mode.graphs for mode in self.words)
        strict, free = (self.words.get(Mode(strict, graphs), {}) for strict in (True, False))
        barred = [row["over_limit"] for row in measured if row["sessions"] <= 32]
        return {
            "engine": self.said,
            "same_words_without_graphs": same(strict, self.words.get(Mode(True, False), {})) if graphs else None,
            "same_words_without_graphs_free": same(free, self.words.get(Mode(False, False), {})) if graphs else None,
            "same_words_in_any_company": same_company(strict),
            "cost_of_strict_mode": costs_of_strict_mode(self.rows, graphs=graphs),
            "worst_over_limit_to_32_sessions": max(barred, default=None),
            "cells_measured": len(measured),
            "cells_without_figures": len(self.rows) - len(measured),
        }


def measure(
    engine: TorchEngine, mode: Mode, plan: Plan, device: Device, words: Words, until: float
) -> Iterator[dict[str, Any]]:
    """A row per cell; what does not fit, fails or has no time left is a row that says so.

    words: what each cell chose, to be compared. until: by `time.monotonic`.
    """
    weights, of_a_token = read_bytes(engine.model), kv_bytes_per_token(engine)
    opened: dict[int, list[SequenceId]] = {context: [] for context in plan.contexts}
    for sessions, context, drafts in plan.cells():
        cell: dict[str, Any] = {"mode": str(mode), "sessions": sessions, "context": context, "drafts": drafts}
        if time.monotonic() > until:
            yield cell | {"skipped": "no time was left"}
            continue
        for other in set(plan.contexts) - {context}:  # they are not kept side by side
            while opened[other]:
                engine.close(opened[other].pop())
        engine.forget()
        try:
            pretend(engine, opened[context], sessions, context, plan.room)
            blocks = blocks_of(engine, opened[context], drafts)
            back = partial(take_back, engine, opened[context], context, plan.room)
            one = partial(engine.step, blocks)
            timed_ms(one, device.place, plan.warm_ups, back)
            taken = timed_ms(one, device.place, plan.steps, back)
            words[context, sessions, drafts] = [tuple(choices.tokens) for choices in one()]
            back()
        except (EngineFull, OutOfMemory) as error:
            yield cell | {"skipped": str(error)}
            continue
        except Exception as error:  # one cell that fails is not the end of the others
            logging.getLogger(__name__).exception("%s", cell)
            yield cell | {"skipped": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
            continue
        limit_ms = (weights + sessions * context * of_a_token) / device.bytes_per_s * 1000.0
        operations = 2.0 * weights / engine.model.dtype.itemsize * sessions * (drafts + 1)
        product_ms = operations / device.operations_per_s * 1000.0
        median = statistics.median(taken)
        yield cell | {
            "forward": "simple" if engine.fast is None else engine.fast.parts.name,
            "rows": str(engine.rows),
            "strict_holds": engine.info.strict,
            "step_ms": round(median, 4),
            "step_ms_p10": round(taken[len(taken) // 10], 4),
            "step_ms_p90": round(taken[-1 - len(taken) // 10], 4),
            "limit_ms": round(limit_ms, 4),
            "product_ms": round(product_ms, 4),
            "over_limit": round(median / limit_ms, 3),
            "over_both": round(median / max(limit_ms, product_ms), 3),
            "graph_mib": round(engine.fast.steps.graph_bytes / 2**20, 1) if engine.fast is not None else 0.0,
        }
    for left in opened.values():
        for sequence in left:
            engine.close(sequence)
    engine.forget()


def explore(
    model: PreTrainedModel, plan: Plan, device: Device, settings: dict[str, Any], found: Findings, until: float
) -> Iterator[None]:
    """Measure every mode, the one that is served by default first; yields whenever there is news."""
    for share, strict in ((0.5, True), (1.0, False)):
        model.set_attn_implementation("sdpa")  # the model's own again, as an engine expects it
        began = time.monotonic()
        try:
            engine = wrap(
                model,
                name="random",
                products=None,  # the model is wrapped again
                strict=strict,
                max_sequences=max(plan.sessions),
                context_limit=max(plan.contexts) + plan.room,
                **settings,
            )
        except ModelError as error:
            found.rows.append({"mode": str(Mode(strict, False)), "skipped": str(error)})
            yield
            continue
        name = "simple forward" if engine.fast is None else engine.fast.parts.name
        found.said["strict" if strict else "free"] = (
            f"{name}; {engine.rows}; {engine.info.strict_report} Ready after {time.monotonic() - began:.0f} s."
        )
        end = time.monotonic() + (until - time.monotonic()) * share
        captures = (True, False) if device.place.type == "cuda" and engine.fast is not None else (False,)
        for graphs in captures:
            if engine.fast is not None:
                engine.fast.capture(graphs)
            mode = Mode(strict, graphs)
            found.words[mode] = {}
            mode_end = end - (end - time.monotonic()) * 0.3 if graphs else end
            for row in measure(engine, mode, plan, device, found.words[mode], mode_end):
                found.rows.append(row)
                yield
        del engine  # its pages, before those of the next are taken
        gc.collect()
        if device.place.type == "cuda":
            torch.cuda.empty_cache()


def same_company(words: Words) -> bool | None:
    """Whether a session's words are the same beside others as in the smallest company; None without two sizes."""
    smallest = min((sessions for _, sessions, _ in words), default=0)
    compared = [
        found[:smallest] == words[context, smallest, drafts]
        for (context, sessions, drafts), found in words.items()
        if sessions > smallest and (context, smallest, drafts) in words
    ]
    return all(compared) if compared else None


def same(one: Words, other: Words) -> bool | None:
    """Whether two modes chose the same words wherever both ran; None if they never did."""
    both = one.keys() & other.keys()
    return all(one[case] == other[case] for case in both) if both else None


def costs_of_strict_mode(rows: list[dict[str, Any]], *, graphs: bool) -> list[float]:
    """Step time in strict mode over that in free mode, with graphs or without, case by case."""
    times = {
        (row["mode"], row["context"], row["sessions"], row["drafts"]): row["step_ms"]
        for row in rows
        if "step_ms" in row
    }
    free, strict = str(Mode(False, graphs)), str(Mode(True, graphs))
    return [
        round(taken / times[free, *case], 3)
        for (mode, *case), taken in times.items()
        if mode == strict and (free, *case) in times
    ]


def table_of(shape: str, rows: list[dict[str, Any]]) -> Table:
    """What was measured, for people."""
    columns = (
        "mode",
        "sessions",
        "context",
        "drafts",
        "step ms",
        "p10",
        "p90",
        "limit",
        "over",
        "products",
        "over both",
    )
    table = Table(*columns, title=shape, box=SIMPLE_HEAD, padding=0)
    for row in rows:
        head = [str(row.get(name, "-")) for name in ("mode", "sessions", "context", "drafts")]
        if "skipped" in row:
            table.add_row(*head, "skipped")
            continue
        figures = [f"{row[name]:.3f}" for name in ("step_ms", "step_ms_p10", "step_ms_p90", "limit_ms")]
        over = [f"{row['over_limit']:.2f}x", f"{row['product_ms']:.3f}", f"{row['over_both']:.2f}x"]
        table.add_row(*head, *figures, *over)
    for reason in dict.fromkeys(row["skipped"] for row in rows if "skipped" in row):
        table.caption = f"{table.caption or 'skipped:'} {reason}"
    return table


def numbers(_context: click.Context, _option: click.Parameter, value: str) -> tuple[int, ...]:
    """Whole numbers above zero, separated by commas."""
    try:
        found = tuple(int(part) for part in value.split(","))
    except ValueError:
        found = (0,)
    if min(found) < 1:
        raise click.BadParameter(f'"{value}" is not a list of whole numbers above zero, such as 1,8,32.')
    return found


@click.command()
@click.option("--device", default="cuda", show_default=True)
@click.option("--shape", "shapes", multiple=True, type=click.Choice(list(SHAPES)), help="[default: the real ones]")
@click.option("--sessions", default="1,8,32,128", show_default=True, callback=numbers)
@click.option("--drafts", default="4,8,1", show_default=True, callback=numbers)
@click.option("--contexts", default="1024,8192", show_default=True, callback=numbers)
@click.option("--steps", default=30, show_default=True, type=click.IntRange(3), help="Measured per case.")
@click.option("--warm-ups", default=5, show_default=True, type=click.IntRange(2), help="The second captures.")
@click.option("--budget-s", default=540.0, show_default=True, help="No new case is begun after so many seconds.")
@click.option("--kernel", default="auto", type=click.Choice(["auto", "gathered"]), help="gathered: also on a CPU.")
@report.json_option("Rewritten after every case.")
def main(
    device: str,
    shapes: tuple[str, ...],
    sessions: tuple[int, ...],
    drafts: tuple[int, ...],
    contexts: tuple[int, ...],
    steps: int,
    warm_ups: int,
    budget_s: float,
    kernel: str,
    json_file: Path | None,
) -> None:
    """Measure and print a table."""
    until = time.monotonic() + budget_s
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("torch sees no CUDA device here; give --device cpu --shape tiny to see this run.")
    shapes = shapes or REAL_SHAPES
    if len(shapes) > 1:
        apart(shapes, sys.argv[1:], until, json_file)
        return
    plan = Plan(sessions, drafts, contexts, steps, warm_ups)
    limits = Device(place, copy_bandwidth(place), product_rate(place))
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else "CPU"
    result: dict[str, Any] = {
        "device": name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "copy_bytes_per_s": round(limits.bytes_per_s),
        "product_operations_per_s": round(limits.operations_per_s),
    }
    Console().print(
        f"{name}: a copy moves {limits.bytes_per_s / 1e9:.1f} GB/s, "
        f"products run at {limits.operations_per_s / 1e12:.1f} Tera-operations/s"
    )
    [shape] = shapes
    found = Findings()
    settings = {"parts": Parts(GATHERED) if kernel == "gathered" else None}
    try:
        for _ in explore(build(shape, place), plan, limits, settings, found, until):
            rows = [{"shape": shape} | row for row in found.rows]
            report.write(json_file, result | {"findings": {shape: found.summary()}, "rows": rows})
            if "step_ms" in found.rows[-1]:
                last = found.rows[-1]
                logging.info("%s: %s", shape, {k: last[k] for k in (*list(last)[:4], "step_ms", "over_limit")})
    finally:
        print_whole(Console(), table_of(shape, found.rows))
        Console().print(found.summary())


def apart(shapes: tuple[str, ...], arguments: list[str], until: float, json_file: Path | None) -> None:
    """Each shape in a process of its own, so that an error of the device in one leaves the others; then one file."""
    whole: dict[str, Any] = {"findings": {}, "rows": []}
    for number, shape in enumerate(shapes):
        left = (until - time.monotonic()) / (len(shapes) - number)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "part.json"
            own = ["--shape", shape, "--budget-s", str(left), "--json", str(file)]
            subprocess.run(
                [sys.executable, "-m", "benchmarks.gpu_step", *_without_shapes(arguments), *own], check=False
            )
            if not file.exists():
                whole["findings"][shape] = "nothing was measured"
                continue
            part = json.loads(file.read_text())
            whole = part | {"findings": whole["findings"] | part["findings"], "rows": whole["rows"] + part["rows"]}
            report.write(json_file, whole)


def _without_shapes(arguments: list[str]) -> list[str]:
    """A command line without its shapes; of other options given twice the last one counts."""
    return [
        argument
        for before, argument in zip(["", *arguments], arguments, strict=False)
        if "--shape" not in (before, argument.partition("=")[0])
    ]


if __name__ == "__main__":
    main()
