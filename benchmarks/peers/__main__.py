"""Peers and ours on the same model, prompts, machine and link, in turns.

::

    python -m benchmarks.peers --target FOLDER --gguf FILE --drafter FOLDER

Every way answers every prompt greedily at every round trip, alone and beside others at once; each is a server in a
process of its own, with one thread, behind an emulated link of its own. Peers stream their tokens as they come, over
plain TCP (`token_server`), which is less than any of their own servers costs. What cannot be run is told with its
reason. FOLDER: the model for transformers and for our torch engine; FILE: the same model for llama.cpp, alone and as
our engine. `make demo MODEL=smollm2` makes both in the user's cache.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import AutoTokenizer

from benchmarks import report
from benchmarks.peers.kinds import NOT_RUN, PEERS, Models
from edge_client.client import EdgeClient
from netlab import prompts as prompt_sets
from netlab.console import print_whole
from netlab.link_process import LinkProcess
from netlab.link_settings import LinkSettings
from netlab.race import chat
from netlab.verifier_process import VerifierProcess
from speculation.sampling import SamplingParams

Answer = Callable[[list[int], int], list[int]]


@dataclass(frozen=True)
class Way:
    """A way to have a prompt answered. family: of those that share the model's numbers. link: to configure."""

    name: str
    family: str
    link: LinkProcess
    answer: Answer


@contextlib.contextmanager
def peer(name: str, models: Models) -> Iterator[int]:
    """A peer's server; gives its port. Raises ClickException if it does not start."""
    command = [sys.executable, "-m", "benchmarks.peers.token_server", name, "--folder", str(models.folder)]
    command += [part for key in ("gguf", "assistant") if (f := getattr(models, key)) for part in (f"--{key}", str(f))]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    with subprocess.Popen(
        [*command, "--threads", str(models.threads)], stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        assert child.stdout is not None
        try:
            if not (line := child.stdout.readline()):
                raise click.ClickException(f"{name} did not start; what it said stands above.")
            yield int(line)
        finally:
            child.terminate()


def asked_over_tcp(port: int) -> Answer:
    """Answers of a token server."""

    def answer(prompt: list[int], tokens: int) -> list[int]:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(json.dumps({"prompt": prompt, "tokens": tokens}).encode() + b"\n")
            with connection.makefile() as lines:
                return [int(line) for line in lines]

    return answer


def asked_over_ours(client: EdgeClient) -> Answer:
    """Answers of a verifier."""

    def answer(prompt: list[int], tokens: int) -> list[int]:
        params = SamplingParams(temperature=0.0, max_tokens=tokens)
        return list(client.generate(prompt, params, seed=0).token_ids)

    return answer


def ways(
    stack: contextlib.ExitStack, models: Models, wanted: Sequence[str], drafters: Sequence[str], console: Console
) -> list[Way]:
    """All that can be run, started. wanted: names of peers."""
    found = []
    for name in wanted:
        kind = PEERS[name]
        if why := kind.missing(models):
            console.print(f"not run: {name}: {why}")
            continue
        link = stack.enter_context(LinkProcess(("127.0.0.1", stack.enter_context(peer(name, models)))))
        found.append(Way(name, name.partition(",")[0], link, asked_over_tcp(link.port)))
    for name, why in NOT_RUN.items():
        console.print(f"not run: {name}: {why}")
    options = ["--threads", str(models.threads), "--max-sessions", "16"]
    targets = {"transformers": models.folder, "llama.cpp": models.gguf}
    for family, target in targets.items():
        if target is None or not any(way.family == family for way in found):
            continue
        verifier = stack.enter_context(VerifierProcess(target, options=options))
        for drafter in (None, *drafters):
            link = stack.enter_context(LinkProcess(("127.0.0.1", verifier.port)))
            client = stack.enter_context(EdgeClient(f"127.0.0.1:{link.port}", drafter))
            how = "streaming" if drafter is None else f"drafter {Path(drafter).name}"
            found.append(Way(f"Outrider on {family}, {how}", family, link, asked_over_ours(client)))
    return found


def timed(way: Way, prompts: Sequence[list[int]], tokens: int) -> list[tuple[float, list[int]]]:
    """Milliseconds and ids of each prompt, all asked at once."""

    def one(prompt: list[int]) -> tuple[float, list[int]]:
        began = time.perf_counter()
        ids = way.answer(prompt, tokens)
        return 1e3 * (time.perf_counter() - began), ids

    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(one, prompts))


def row(way: Way, rtt_ms: float, sessions: int, rounds: Sequence[list[tuple[float, list[int]]]]) -> dict[str, Any]:
    """What a way cost. ms_per_token: of an answer, its whole time by its tokens, median and quartiles."""
    each = [ms / max(1, len(ids)) for answers in rounds for ms, ids in answers]
    low, middle, high = statistics.quantiles(each, n=4) if len(each) > 1 else each * 3
    together = sum(max(ms for ms, _ in answers) for answers in rounds)
    tokens = sum(len(ids) for answers in rounds for _, ids in answers)
    return {
        "way": way.name,
        "rtt_ms": rtt_ms,
        "sessions": sessions,
        "ms_per_token": [round(value, 2) for value in (low, middle, high)],
        "tokens_per_s": round(1e3 * tokens / together, 2),
    }


def agreement(mine: Sequence[int], others: Sequence[int]) -> float:
    """Share of the shorter answer until the first token that differs."""
    length = min(len(mine), len(others))
    same = next((i for i in range(length) if mine[i] != others[i]), length)
    return same / max(1, length)


@click.command(context_settings={"show_default": True})
@click.option("--target", type=click.Path(path_type=Path, exists=True), required=True, help="A transformers folder.")
@click.option("--gguf", type=click.Path(path_type=Path, exists=True), help="The same model for llama.cpp.")
@click.option(
    "--assistant", type=click.Path(path_type=Path, exists=True), help="A transformers folder: transformers' assistant."
)
@click.option("--peer", "wanted", multiple=True, type=click.Choice(list(PEERS)), default=list(PEERS))
@click.option("--drafter", "drafters", multiple=True, help="Of our device; may be repeated.  [default: ngram]")
@click.option("--rtt-ms", "rtts_ms", multiple=True, type=float, default=(0.0, 20.0, 50.0, 100.0, 200.0))
@click.option("--sessions", "counts", multiple=True, type=click.IntRange(1), default=(1, 8))
@click.option("--prompt-set", default=prompt_sets.TASKS)
@click.option("--prompts", default=6)
@click.option("--tokens", default=64, help="Of an answer, at most.")
@click.option("--threads", default=1, help="Of every server.")
@report.json_option()
def main(
    target: Path,
    gguf: Path | None,
    assistant: Path | None,
    wanted: tuple[str, ...],
    drafters: tuple[str, ...],
    rtts_ms: tuple[float, ...],
    counts: tuple[int, ...],
    prompt_set: str,
    prompts: int,
    tokens: int,
    threads: int,
    json_file: Path | None,
) -> None:
    """Race peers and ours over the same emulated link and print a table."""
    console = Console()
    load_before = os.getloadavg()[0]
    asked = prompt_sets.find(prompt_set).first(prompts)
    tokenizer: Any = AutoTokenizer.from_pretrained(target)
    ids = [tokenizer.apply_chat_template(chat(p), add_generation_prompt=True, return_dict=False) for p in asked.prompts]
    rows: list[dict[str, Any]] = []
    words: dict[tuple[str, int], list[int]] = {}
    with contextlib.ExitStack() as stack:
        all_ways = ways(stack, Models(target, gguf, assistant, threads), wanted, drafters or ("ngram",), console)
        progress = stack.enter_context(Progress(console=console, transient=True, disable=not console.is_terminal))
        task = progress.add_task("warming up", total=len(rtts_ms) * len(counts) * len(all_ways) * prompts)
        for way in all_ways:
            way.answer(ids[0], 8)
        for rtt_ms in rtts_ms:
            for way in all_ways:
                way.link.configure(LinkSettings.of_rtt(rtt_ms))
            for sessions in counts:
                rounds: dict[str, list[list[tuple[float, list[int]]]]] = {way.name: [] for way in all_ways}
                for index in range(prompts):
                    for way in random.Random(index).sample(all_ways, len(all_ways)):
                        together = [ids[(index + at) % len(ids)] for at in range(sessions)]
                        answers = timed(way, together, tokens)
                        rounds[way.name].append(answers)
                        words.setdefault((way.name, index), answers[0][1])
                        if words[way.name, index] != answers[0][1]:
                            console.print(f"[yellow]{way.name} wrote other words for prompt {index + 1} than before")
                        progress.update(task, advance=1, description=f"{rtt_ms:g} ms, {sessions} at once, {way.name}")
                rows += [row(way, rtt_ms, sessions, rounds[way.name]) for way in all_ways]
    first = {way.family: way.name for way in reversed(all_ways)}
    same = {
        way.name: round(
            statistics.mean(agreement(words[way.name, i], words[first[way.family], i]) for i in range(prompts)), 3
        )
        for way in all_ways
    }
    table = Table("", "same words", *(f"{rtt:g} ms, {n} at once" for rtt in rtts_ms for n in counts))
    for way in all_ways:
        own = [one for one in rows if one["way"] == way.name]
        table.add_row(way.name, f"{same[way.name]:.0%}", *(f"{one['ms_per_token'][1]:.1f}" for one in own))
    table.title = "ms per token, medians; same words: as the family's first, until the first that differs"
    print_whole(console, table)
    settings = {"target": target.name, "prompt_set": prompt_set, "prompts": prompts, "tokens": tokens}
    settings |= {"threads": threads, "drafters": list(drafters)}
    report.write(json_file, settings | {"load_average_before": load_before, "same_words": same, "rows": rows})


if __name__ == "__main__":
    main()
