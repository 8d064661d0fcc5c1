"""The time of one step of the target against its limits: bytes to read over the device's copy bandwidth, products over
its rate of matrix products.

Weights are random, in the shapes of real models: what a step costs does not depend on what they say. The same tokens
are stepped with and without CUDA graphs, in strict mode and not, and the words compared. What matters most is measured
first, and everything is written down as soon as it is known, so that a run that is cut short has said something. On a
CPU the tiny shape shows that the benchmark runs; its figures say nothing about a GPU.
"""

from __future__ import annotations

import logging
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from cloud_verifier.engines.base import Block, EngineFull, Sampler, SequenceId
from cloud_verifier.engines.torch_engine import ModelError, TorchEngine
from cloud_verifier.engines.torch_engine.engine import OutOfMemory
from cloud_verifier.engines.torch_engine.kernels import GATHERED
from cloud_verifier.engines.torch_engine.load import wrap
from cloud_verifier.engines.torch_engine.parts import Parts
from cloud_verifier.engines.torch_engine.pool import PAGE_TOKENS, layer_shapes, page_bytes
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
PREFILL_TOKENS = 2048
SAMPLER = Sampler(SamplingParams(temperature=0.8), seed=9, prompt_length=0)


@dataclass(frozen=True)
class Plan:
    """What to measure: all of sessions x drafts x contexts, in each mode."""

    sessions: tuple[int, ...]
    drafts: tuple[int, ...]
    contexts: tuple[int, ...]
    steps: int
    warm_ups: int


@dataclass(frozen=True)
class Mode:
    """How the engine runs."""

    strict: bool
    graphs: bool

    def __str__(self) -> str:
        return f"{'strict' if self.strict else 'free'}{', graphs' if self.graphs else ''}"


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
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    for _ in range(3):
        target.copy_(source)
    return 2 * size / (timed_ms(lambda: target.copy_(source), device, 20)[0] / 1000.0)


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


def kv_bytes_per_token(model: PreTrainedModel) -> int:
    """Of keys and values, in all layers."""
    return page_bytes(layer_shapes(model), model.dtype) // PAGE_TOKENS


def fill_with(engine: TorchEngine, opened: list[SequenceId], sessions: int, context: int, room: int) -> None:
    """Open sequences up to so many, each with a text of its own of `context` tokens, and room for more."""
    for number in range(len(opened), sessions):
        text = random.Random(number).choices(range(engine.info.vocabulary_size), k=context)
        sequence = engine.open()
        engine.reserve(sequence, context + room)
        opened.append(sequence)
        for first in range(0, context, PREFILL_TOKENS):
            engine.step([Block(sequence, text[first : first + PREFILL_TOKENS], 0, SAMPLER)])


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


def measure(
    model: PreTrainedModel, mode: Mode, plan: Plan, bandwidth: float, words: Words, settings: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """A row per case; what does not fit is a row that says why. words: what each case chose, to be compared."""
    device = model.device
    weights = read_bytes(model)
    for context in plan.contexts:
        model.set_attn_implementation("sdpa")  # the model's own again, as an engine expects it
        of_a_token = kv_bytes_per_token(model)
        case: dict[str, Any] = {"mode": str(mode), "context": context}
        try:
            engine = wrap(
                model,
                name="random",
                strict=mode.strict,
                max_sequences=max(plan.sessions),
                context_limit=context + max(plan.drafts) + 1,
                cuda_graphs=mode.graphs,
                **settings,
            )
        except ModelError as error:
            yield case | {"sessions": max(plan.sessions), "skipped": str(error)}
            continue
        opened: list[SequenceId] = []
        for sessions in sorted(plan.sessions):
            case["sessions"] = sessions
            try:
                fill_with(engine, opened, sessions, context, max(plan.drafts) + 1)
            except (EngineFull, OutOfMemory) as error:
                yield case | {"skipped": str(error)}
                break  # more of them will not fit either
            for drafts in plan.drafts:
                blocks = blocks_of(engine, opened, drafts)
                back = partial(take_back, engine, opened, context, max(plan.drafts) + 1)
                words[context, sessions, drafts] = [tuple(choices.tokens) for choices in engine.step(blocks)]
                back()
                one = partial(engine.step, blocks)
                timed_ms(one, device, plan.warm_ups, back)
                taken = timed_ms(one, device, plan.steps, back)
                limit_ms = (weights + sessions * context * of_a_token) / bandwidth * 1000.0
                median = statistics.median(taken)
                yield case | {
                    "drafts": drafts,
                    "forward": "fast" if engine.fast is not None else "simple",
                    "strict_holds": engine.info.strict,
                    "step_ms": round(median, 4),
                    "step_ms_p10": round(taken[len(taken) // 10], 4),
                    "step_ms_p90": round(taken[-1 - len(taken) // 10], 4),
                    "limit_ms": round(limit_ms, 4),
                    "over_limit": round(median / limit_ms, 3),
                    "graph_mib": round(engine.fast.steps.graph_bytes / 2**20, 1) if engine.fast is not None else 0.0,
                }
        del engine  # its pages, before those of the next are taken


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
    columns = ("mode", "forward", "context", "sessions", "drafts", "step ms", "p10", "p90", "limit", "over")
    table = Table(*columns, title=shape, box=SIMPLE_HEAD, padding=0)
    for row in rows:
        head = [row["mode"], row.get("forward", "-"), str(row["context"]), str(row["sessions"])]
        if "skipped" in row:
            table.add_row(*head, "-", "skipped")
            continue
        figures = [f"{row[name]:.3f}" for name in ("step_ms", "step_ms_p10", "step_ms_p90", "limit_ms")]
        table.add_row(*head, str(row["drafts"]), *figures, f"{row['over_limit']:.2f}x")
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
@click.option("--drafts", default="1,4,8", show_default=True, callback=numbers)
@click.option("--contexts", default="1024,8192", show_default=True, callback=numbers)
@click.option("--steps", default=30, show_default=True, type=click.IntRange(3), help="Measured per case.")
@click.option("--warm-ups", default=5, show_default=True, type=click.IntRange(0))
@click.option("--kernel", default="auto", type=click.Choice(["auto", "gathered"]), help="gathered: also on a CPU.")
@click.option("--compile-draw", is_flag=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(
    device: str,
    shapes: tuple[str, ...],
    sessions: tuple[int, ...],
    drafts: tuple[int, ...],
    contexts: tuple[int, ...],
    steps: int,
    warm_ups: int,
    kernel: str,
    compile_draw: bool,
    json_file: Path | None,
) -> None:
    """Measure and print a table."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("torch sees no CUDA device here; give --device cpu --shape tiny to see this run.")
    bandwidth = copy_bandwidth(place)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else "CPU"
    Console().print(f"{name}: a copy moves {bandwidth / 1e9:.1f} GB/s")
    plan = Plan(sessions, drafts, contexts, steps, warm_ups)
    settings = {"kernel": gathered if kernel == "gathered" else None, "compile_draw": compile_draw}
    graphs = (False, True) if place.type == "cuda" else (False,)  # there is nothing to capture on a CPU
    modes = [Mode(strict, captured) for strict in (False, True) for captured in graphs]
    rows: list[dict[str, Any]] = []
    findings: dict[str, Any] = {}
    for shape in shapes or ("llama-3.1-8b", "qwen3-1.7b"):
        model = build(shape, place)
        of_shape: list[dict[str, Any]] = []
        words: dict[Mode, Words] = {}
        for mode in modes:
            words[mode] = {}
            of_shape += measure(model, mode, plan, bandwidth, words[mode], settings)
        findings[shape] = {
            "same_words_without_graphs": same(words.get(Mode(True, True), {}), words[Mode(True, False)]),
            "same_words_without_graphs_free": same(words.get(Mode(False, True), {}), words[Mode(False, False)]),
            "same_words_in_any_company": same_company(words[modes[-1]]),
            "cost_of_strict_mode": costs_of_strict_mode(of_shape, graphs=modes[-1].graphs),
        }
        Console().print(table_of(shape, of_shape))
        Console().print(findings[shape])
        rows += [{"shape": shape} | row for row in of_shape]
        del model
    result = {
        "device": name,
        "torch": torch.__version__,
        "copy_bytes_per_s": round(bandwidth),
        "findings": findings,
        "rows": rows,
    }
    report.write(json_file, result)


if __name__ == "__main__":
    main()
