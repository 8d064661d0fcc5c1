"""How well drafters guess what a target writes, by kind of work, and what a guess costs: no network, no verifier.

The target answers every prompt of a set, greedy and at T = 0.8 under shared noise; then each drafter guesses every
token of these answers from what stands before it, through the product's own code. A drafter of another vocabulary
speaks as it would on a device. Counted per drafter: how often its best guess is right (acceptance), how often one of
its best two is (what a draft tree can reach), by kind of work and by how many guesses in a row are right; and the time
of a guess on one and on two threads, drafters in turns, by the clock and in processor time, which other work on the
machine changes less.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import report
from edge_client.drafters import load_drafter
from edge_client.drafters.base import ANY_VOCABULARY, Drafter
from edge_client.drafters.vocabulary.strategy import match
from models.demo.evaluate import SURVIVAL_DEPTH, survival
from netlab import prompts as prompt_sets
from netlab.console import print_whole
from netlab.race import chat
from speculation.noise import Noise
from speculation.sampling import Guess, SamplingParams
from speculation.vocabulary.vocabulary import Vocabulary

PARAMS = {"greedy": SamplingParams(temperature=0.0), "t0.8": SamplingParams(temperature=0.8)}
BATCH = 12
TIMED_GUESSES = 48
WIDTH = 2


@dataclass(frozen=True)
class Answer:
    """What the target wrote. prompt, tokens: ids."""

    task: str
    seed: int
    prompt: list[int]
    tokens: list[int]


@torch.inference_mode()
def answers(target: Path, prompts: prompt_sets.PromptSet, params: SamplingParams, most_tokens: int) -> list[Answer]:
    """The target's answers, each with its place as its seed, until the end of the turn or `most_tokens`."""
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(target)
    asked = [
        tokenizer.apply_chat_template(chat(text), add_generation_prompt=True, return_dict=False)
        for text in prompts.prompts
    ]
    order = sorted(range(len(asked)), key=lambda at: len(asked[at]))  # little padding
    written: dict[int, list[int]] = {}
    for first in range(0, len(order), BATCH):
        batch = order[first : first + BATCH]
        written |= dict(
            zip(batch, _continued(model, [asked[at] for at in batch], batch, params, most_tokens), strict=True)
        )
    end = model.config.eos_token_id
    cut = {at: ids[: ids.index(end) + 1] if end in ids else ids for at, ids in written.items()}
    return [Answer(prompts.tasks[at], at, asked[at], cut[at]) for at in range(len(asked))]


def _continued(
    model: Any, asked: list[list[int]], seeds: Sequence[int], params: SamplingParams, most_tokens: int
) -> list[list[int]]:
    """Token ids of a batch, all of the same length."""
    longest = max(map(len, asked))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in asked])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in asked])
    everything = np.arange(model.config.vocab_size)
    noises = [Noise(seed) for seed in seeds]
    past, inputs = None, ids
    tokens: list[list[int]] = [[] for _ in asked]
    for step in range(most_tokens):
        places = (mask.cumsum(1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
        out = model(
            input_ids=inputs, attention_mask=mask, position_ids=places, past_key_values=past, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        past = out.past_key_values
        for row, (logits, prompt, noise) in enumerate(zip(out.logits[:, -1].numpy(), asked, noises, strict=True)):
            scores = logits.astype(np.float64)
            if not params.greedy:
                scores = scores / params.temperature + noise.gumbel(len(prompt) + step, everything)
            tokens[row].append(int(scores.argmax()))
        inputs = torch.tensor([[row[-1]] for row in tokens])
        mask = torch.cat([mask, torch.ones_like(inputs)], 1)
    return tokens


def opened(spec: str, vocabulary: Vocabulary, size: int, threads: int = 1) -> Drafter:
    """A drafter as it drafts for the target. Raises ClickException if it cannot."""
    drafter = load_drafter(spec, threads=threads)
    if drafter is None:
        raise click.ClickException(f"{spec} names no drafter.")
    if drafter.info.vocabulary_fingerprint == ANY_VOCABULARY:
        drafter.adopt_vocabulary(vocabulary.fingerprint, size)
        return drafter
    found = match(drafter, vocabulary, size)
    if found.speaking is None:
        raise click.ClickException(f"{found.sentence}.")
    return found.speaking()


def places(drafter: Drafter, given: Answer, params: SamplingParams) -> list[int]:
    """At each token of an answer, the place of the right token among the drafter's best `WIDTH`; -1: not there."""
    guess = Guess(params, given.seed)
    drafter.rollback(0)
    drafter.feed(given.prompt)
    found = []
    for at, token in enumerate(given.tokens, len(given.prompt)):
        candidates = drafter.candidates()
        best = guess.ranked(WIDTH, at, *candidates)[0] if len(candidates.ids) else []
        found.append(best.index(token) if token in best else -1)
        drafter.feed([token])
    return found


def guess_ms(drafter: Drafter, given: Answer) -> tuple[float, float]:
    """Median time and processor time of a guess at T = 0.8: reading a token, candidates, the choice among them."""
    guess = Guess(PARAMS["t0.8"], given.seed)
    drafter.rollback(0)
    drafter.feed(given.prompt)
    took = []
    for at, token in enumerate(given.tokens[:TIMED_GUESSES], len(given.prompt)):
        began, worked = time.perf_counter(), time.process_time()
        drafter.feed([token])
        candidates = drafter.candidates()
        if len(candidates.ids):
            guess(at, *candidates)
        took.append((time.perf_counter() - began, time.process_time() - worked))
    clock, processor = zip(*took, strict=True)
    return 1e3 * statistics.median(clock), 1e3 * statistics.median(processor)


def figures(given: Sequence[Answer], found: Sequence[list[int]]) -> dict[str, Any]:
    """Of one drafter at one temperature. found: `places` of each answer."""
    hits = [[place == 0 for place in row] for row in found]
    tasks = dict.fromkeys(one.task for one in given)

    def share(rows: Sequence[Sequence[bool]]) -> float:
        return round(statistics.mean([hit for row in rows for hit in row]), 4)

    return {
        "tokens": sum(map(len, found)),
        "acceptance": share(hits),
        "one_of_two": share([[place >= 0 for place in row] for row in found]),
        "by_task": {
            task: share([row for one, row in zip(given, hits, strict=True) if one.task == task]) for task in tasks
        },
        "first_j_right": survival(hits),
    }


def timed(specs: Sequence[str], vocabulary: Vocabulary, size: int, given: Answer, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds per guess of each drafter, by threads: median and quartiles over rounds in turns."""
    found: list[dict[str, Any]] = [{} for _ in specs]
    for threads in (1, 2):
        drafters = [opened(spec, vocabulary, size, threads) for spec in specs]
        took = [[guess_ms(drafter, given) for drafter in drafters] for _ in range(rounds)]
        for at, drafter in enumerate(drafters):
            quartiles = np.percentile([row[at] for row in took], [25, 50, 75], axis=0).round(3)
            found[at][f"ms_{threads}_threads"] = quartiles[:, 0].tolist()
            found[at][f"processor_ms_{threads}_threads"] = quartiles[:, 1].tolist()
            drafter.close()
    return found


@click.command(context_settings={"show_default": True})
@click.option("--target", type=click.Path(path_type=Path, exists=True), required=True, help="A transformers folder.")
@click.option("--drafter", "specs", multiple=True, required=True, help="As edge-client takes it; may be repeated.")
@click.option("--prompt-set", default=prompt_sets.TASKS, help="tasks, demo or a TOML file.")
@click.option("--prompts", default=36, help="How many.")
@click.option("--max-tokens", default=64, help="Tokens of an answer, at most.")
@click.option("--threads", default=1, help="Of the target.")
@click.option("--rounds", default=3, help="Of timing.")
@report.json_option()
def main(
    target: Path,
    specs: tuple[str, ...],
    prompt_set: str,
    prompts: int,
    max_tokens: int,
    threads: int,
    rounds: int,
    json_file: Path | None,
) -> None:
    """Measure the drafters on the target's own answers and print a table."""
    torch.set_num_threads(threads)
    asked = prompt_sets.find(prompt_set).first(prompts)
    vocabulary = Vocabulary.of_tokenizer(json.loads((target / "tokenizer.json").read_text(encoding="utf-8")))
    size = AutoModelForCausalLM.from_pretrained(target).config.vocab_size
    rows: dict[str, dict[str, Any]] = {spec: {} for spec in specs}
    for name, params in PARAMS.items():
        given = answers(target, asked, params, max_tokens)
        for spec in specs:
            drafter = opened(spec, vocabulary, size)
            rows[spec][name] = figures(given, [places(drafter, one, params) for one in given])
            drafter.close()
            click.echo(f"{spec}, {name}: {rows[spec][name]['acceptance']}", err=True)
    longest = max(given, key=lambda one: len(one.tokens))
    for spec, ms in zip(specs, timed(specs, vocabulary, size, longest, rounds), strict=True):
        rows[spec] |= ms
    console = Console()
    table = Table(
        "drafter",
        "ms, 1 thread",
        "2 threads",
        "processor ms",
        "",
        "acceptance",
        "one of two",
        *dict.fromkeys(asked.tasks),
        f"{SURVIVAL_DEPTH} in a row",
    )
    for spec, row in rows.items():
        for name in PARAMS:
            one = row[name]
            shares = [one["acceptance"], one["one_of_two"], *one["by_task"].values(), one["first_j_right"][-1]]
            times = [row[kind][1] for kind in ("ms_1_threads", "ms_2_threads", "processor_ms_1_threads")]
            table.add_row(spec, *map(str, times), name, *map(str, shares))
    print_whole(console, table)
    settings = {"target": target.name, "prompt_set": prompt_set, "prompts": prompts, "max_tokens": max_tokens}
    report.write(json_file, settings | {"rounds": rounds, "drafters": rows})


if __name__ == "__main__":
    main()
