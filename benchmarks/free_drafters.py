"""What lookups add to a model, and that they never take anything away.

A scripted target says texts that are known beforehand, over an emulated link and with a fixed time per step, so that
every way of drafting is asked for the very same words. Three cases: an answer that repeats its prompt with edits, one
that repeats an earlier answer with edits, and one that repeats nothing but what dialogues share. The texts are the demo
target's own, so that the demo drafter is as good at them as it is elsewhere; its time per guess is that of a device.
In the lanes with `own` the verifier looks up, too (`--own-guesses ngram`); in `own` the device drafts nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks import report
from cloud_verifier.engines.base import Block, Choices, EngineInfo, SequenceId, TargetEngine
from cloud_verifier.guessing.ngram import NgramGuesser
from cloud_verifier.server import running
from cloud_verifier.serving.address import Address
from cloud_verifier.serving.open_request import Served
from edge_client.client import EdgeClient
from edge_client.drafters import load_drafter
from edge_client.drafters.base import Drafter
from edge_client.drafters.lookup.chain import ChainDrafter
from edge_client.drafters.lookup.history import HistoryDrafter
from edge_client.drafters.lookup.history_store import HistoryStore
from edge_client.drafters.lookup.ngram import NgramDrafter
from netlab.console import print_whole
from netlab.experiments.drafters import Slowed
from netlab.experiments.rig import DEMO
from netlab.link_process import LinkProcess
from netlab.link_settings import LinkSettings
from netlab.race import chat
from netlab.verifier_process import VerifierProcess
from speculation.sampling import SamplingParams
from speculation.vocabulary.vocabulary import Vocabulary

QUESTIONS = (
    "I'd like to book a table for two at an Italian restaurant in San Jose.",
    "Could you find me a flight to Seattle for next Monday?",
    "What is the weather going to be like in Napa on the weekend?",
    "I need a dentist in Oakland, please.",
)
EDIT_EVERY_TOKENS = 24
CASES = ("repeats its prompt", "repeats an answer", "fresh")
LANES = ("streaming", "ngram", "history", "model", "ngram+model", "ngram+history+model", "own", "own+model")
VOCABULARY_SIZE = 4096
_FIRST_TOKEN = 10  # prompts begin with this and the number of their text, so that the target knows which to say


class ScriptedTarget(TargetEngine):
    """Says the text that a prompt's first token names, whatever is drafted."""

    def __init__(self, texts: dict[int, list[int]], step_ms: float, position_ms: float) -> None:
        self.info = EngineInfo("scripted", "none", VOCABULARY_SIZE, (), 1 << 14, 8, True, "it knows what it will say")
        self._texts, self._step_s, self._position_s = texts, step_ms / 1e3, position_ms / 1e3
        self._sequences: dict[SequenceId, list[int]] = {}

    def open(self, _tokens: Sequence[int] = (), _scope: str = "") -> SequenceId:
        """A new sequence."""
        sequence = SequenceId(max(self._sequences, default=0) + 1)
        self._sequences[sequence] = []
        return sequence

    def reserve(self, _sequence: SequenceId, _tokens: int, _parents: Sequence[int] = ()) -> None:
        """There is always room."""

    def length(self, sequence: SequenceId) -> int:
        return len(self._sequences[sequence])

    def step(self, blocks: Sequence[Block]) -> list[Choices]:
        time.sleep(self._step_s + self._position_s * sum(len(block.tokens) for block in blocks))
        return [self._say(block) for block in blocks]

    def _say(self, block: Block) -> Choices:
        tokens = self._sequences[block.sequence]
        tokens.extend(block.tokens)
        text, end = self._texts[tokens[0]], len(tokens)
        return Choices([text[at % len(text)] for at in range(end - block.choices + 1, end + 1)])

    def truncate(self, sequence: SequenceId, length: int) -> None:
        del self._sequences[sequence][length:]

    def close(self, sequence: SequenceId) -> None:
        del self._sequences[sequence]


class NoText:
    """A codec for prompts of token ids; nobody reads the answers."""

    vocabulary, end_ids, words_fingerprint = Vocabulary(()), frozenset[int](), ""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint

    def stream(self, _before: Sequence[int] = ()) -> NoText:
        """Text that is never there."""
        return self

    def push(self, _token: int) -> str:
        """Nothing."""
        return ""

    def rest(self) -> str:
        """Nothing either."""
        return ""


def _serve(ready: Connection, engine: ScriptedTarget, fingerprint: str, own: bool) -> None:
    async def serve() -> None:
        codec: Any = NoText(fingerprint)
        served = Served("scripted", engine.info, codec, guessers=NgramGuesser if own else None)
        async with running(engine, served, Address(port=0)) as (port, *_):
            ready.send(port)
            await asyncio.Event().wait()

    asyncio.run(serve())


@contextlib.contextmanager
def scripted(engine: ScriptedTarget, fingerprint: str, *, own: bool) -> Iterator[tuple[str, int]]:
    """A verifier with a scripted target in a process of its own; gives its address. own: whether it guesses, too."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, engine, fingerprint, own), daemon=True)
    process.start()
    try:
        if not ours.poll(60):
            raise RuntimeError("the scripted verifier did not start within a minute")
        yield "127.0.0.1", ours.recv()
    finally:
        process.terminate()
        process.join()


def write_texts(tokens: int) -> tuple[list[list[int]], str]:
    """One text per question, by the demo target, and its vocabulary's fingerprint."""
    params = SamplingParams(temperature=0.5, max_tokens=tokens, ignore_eos=True)
    with VerifierProcess(DEMO / "target") as verifier, EdgeClient(verifier.address) as client:
        texts = [list(client.generate(chat(question), params, seed=1).token_ids) for question in QUESTIONS]
        return texts, client.model_info().vocabulary_fingerprint


def edited(text: Sequence[int], seed: int) -> list[int]:
    """The text with a token replaced, left out or put in about every EDIT_EVERY_TOKENS tokens."""
    rng, out = random.Random(seed), list[int]()
    for token in text:
        if rng.random() * EDIT_EVERY_TOKENS >= 1:
            out.append(token)
            continue
        change = rng.choice(("replace", "drop", "insert"))
        if change != "drop":
            out.append(rng.randrange(100, VOCABULARY_SIZE))
        if change == "insert":
            out.append(token)
    return out


def script(texts: list[list[int]], case: str) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and answers of a case."""
    edits = [edited(text, seed) for seed, text in enumerate(texts)]
    others = texts[1:] + texts[:1]
    if case == "repeats its prompt":
        return texts, edits
    return others, edits if case == "repeats an answer" else texts


def make(lane: str, spec: str, draft_ms: float, store: HistoryStore) -> Drafter | None:
    """A lane's drafter; spec: its model."""
    kinds = lane.split("+")  # `own` is the verifier's
    lookups: list[Drafter] = [NgramDrafter()] if "ngram" in kinds else []
    if "history" in kinds:
        lookups.append(HistoryDrafter(store))
    model = None
    if "model" in kinds:
        loaded = load_drafter(spec)
        assert loaded is not None
        model = Slowed(loaded, draft_ms) if draft_ms else loaded
    if not lookups or (len(lookups) == 1 and model is None):
        return lookups[0] if lookups else model
    return ChainDrafter(lookups, model)


class Unchanging(HistoryStore):
    """A store that nothing is added to: every answer finds the same past."""

    def add(self, fingerprint: str, answer: Sequence[int]) -> None:
        """Keeps nothing."""


def measure(case: str, texts: list[list[int]], fingerprint: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Every lane on every text of a case, in turns."""
    prompts, answers = script(texts, case)
    prompts = [[_FIRST_TOKEN + i, *prompt] for i, prompt in enumerate(prompts)]
    length = min(len(answer) for answer in answers) - 1
    whole = {_FIRST_TOKEN + i: [*prompt, *answers[i]] for i, prompt in enumerate(prompts)}
    params = SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if case == "repeats an answer":
            for text in texts:
                HistoryStore(folder).add(fingerprint, text)
        engine = ScriptedTarget(whole, settings["step_ms"], settings["position_ms"])
        clients: dict[str, EdgeClient] = {}
        lanes: list[str] = list(settings["lanes"])
        links: dict[bool, LinkProcess] = {}
        for own in {"own" in lane for lane in lanes}:
            address = stack.enter_context(scripted(engine, fingerprint, own=own))
            links[own] = stack.enter_context(LinkProcess(address, LinkSettings.of_rtt(settings["rtt_ms"])))
        for lane in lanes:
            link = links["own" in lane]
            drafter = make(lane, settings["drafter"], settings["draft_ms"], Unchanging(folder))
            clients[lane] = stack.enter_context(
                EdgeClient(f"127.0.0.1:{link.port}", drafter, pace=settings["pace"] if drafter else "streaming")
            )
            clients[lane].generate(prompts[0], SamplingParams(temperature=0.0, max_tokens=8), seed=0)
        outputs: dict[str, list[Any]] = {lane: [] for lane in lanes}
        for turn in range(settings["repeats"]):
            for i, prompt in enumerate(prompts):
                for lane in random.Random(turn * 100 + i).sample(lanes, len(lanes)):
                    output = clients[lane].generate(prompt, params, seed=turn)
                    if list(output.token_ids) != answers[i][:length]:
                        raise RuntimeError(f"{lane} changed the words of text {i}, case {case}")
                    outputs[lane].append(output.metrics)
    return [_row(case, lane, outputs, length) for lane in lanes]


def _row(case: str, lane: str, outputs: dict[str, list[Any]], tokens: int) -> dict[str, Any]:
    def over(other: str) -> float | None:
        """Median over texts and turns of this lane's time as a multiple of another's for the same answer."""
        pairs = zip(outputs[lane], outputs.get(other, []), strict=False)
        ratios = [ours.total_ms / theirs.total_ms for ours, theirs in pairs]
        return round(statistics.median(ratios), 3) if ratios else None

    def median(value: Callable[[Any], float]) -> float:
        return statistics.median(value(metrics) for metrics in outputs[lane])

    return {
        "case": case,
        "drafter": lane,
        "ms_per_token": round(median(lambda m: m.ms_per_token), 3),
        "forwards_per_token": round(median(lambda m: m.target_forwards / tokens), 3),
        "accepted_share": round(median(lambda m: m.accepted_tokens / tokens), 3),
        "own_share": round(median(lambda m: m.own_accepted_tokens / tokens), 3),
        "drafting_ms_per_token": round(median(lambda m: m.drafting_ms / tokens), 3),
        "total_over_streaming": over("streaming"),
        "total_over_model": over("model"),
    }


@click.command(context_settings={"show_default": True})
@click.option("--drafter", default=str(DEMO / "drafter.gguf"), help="The model; of the demo target's vocabulary.")
@click.option("--rtt-ms", default=20.0)
@click.option("--step-ms", default=20.0, help="Of the target.")
@click.option("--position-ms", default=0.0, help="Of the target, for each position of a step.")
@click.option("--draft-ms", default=5.0, help="Least time of a model's guess.")
@click.option("--tokens", default=300, help="Length of a text.")
@click.option("--repeats", default=3, help="Turns over all texts.")
@click.option("--pace", default="adaptive")
@click.option("--case", "cases", multiple=True, type=click.Choice(CASES), default=CASES)
@click.option("--lane", "lanes", multiple=True, type=click.Choice(LANES), default=LANES)
@report.json_option()
def main(tokens: int, cases: tuple[str, ...], json_file: Path | None, **settings: Any) -> None:
    """Measure every drafter in every case and print a table."""
    texts, fingerprint = write_texts(tokens)
    rows = [row for case in cases for row in measure(case, texts, fingerprint, settings)]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    print_whole(Console(), table)
    report.write(json_file, {"tokens": tokens} | settings | {"rows": rows})


if __name__ == "__main__":
    main()
