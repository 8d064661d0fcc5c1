"""A conversation's next turn through `edge-client serve`, as soon as both sides remember the conversation, and cold.

Every repetition has conversations of its own, of some thousand tokens, that begin as no other does. Four ways:

    cold        a turn of a conversation that neither side has heard
    warm        the turn after it
    returned    the turn after that, once the device has drafted for another conversation meanwhile
    strange     as returned, of a device that is started anew: the verifier remembers, the drafter has to read

Told are medians and quartiles of the time to the first word, and of the time until the first guess left the device; the
prompt's tokens, and how many of them the verifier had (`cached_tokens` of the usage, which the verifier counts). The
demo pair is made for 1,024 tokens of context: it is copied with a wider limit, for the speed of reading does not depend
on what is read. What it says then is worth little.
"""

from __future__ import annotations

import http.client
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import click
from rich.console import Console
from rich.table import Table

from benchmarks import report
from edge_client.export.exporting import export
from netlab.assistant_process import AssistantProcess
from netlab.console import print_whole
from netlab.experiments.rig import DEMO
from netlab.prompts import OPENINGS
from netlab.verifier_process import VerifierProcess

CONTEXT_TOKENS = 8192
TOKENS = 64  # of an answer
REPLIES = ("Sure, which day would you like that for?", "I found three of them. Shall I go on?", "That is done for you.")
Messages = list[dict[str, str]]


class Turn(NamedTuple):
    """guess_ms: until the first guess left the device; None if there was none."""

    text: str
    first_ms: float
    guess_ms: float | None
    prompt_tokens: int
    cached_tokens: int


def ask(url: str, messages: Messages, seed: int) -> Turn:
    """One turn, streamed, on a connection that stands before the clock starts."""
    body = {
        "messages": messages,
        "max_tokens": TOKENS,
        "seed": seed,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "outrider": {"ride": True},
    }
    text, first_ms, guess_ms, usage = "", None, None, None
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    connection.connect()
    began_s = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    with closing(connection), connection.getresponse() as response:
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            said = json.loads(line.removeprefix(b"data: "))
            now_ms = (time.perf_counter() - began_s) * 1e3
            if "error" in said:
                raise click.ClickException(said["error"]["message"])
            usage = said.get("usage") or usage
            for happened in said.get("outrider", {}).get("events", ()):
                if happened["kind"] == "sent" and happened["tokens"]:
                    guess_ms = guess_ms or happened["at_ms"]
            if said["choices"] and (content := said["choices"][0]["delta"].get("content")):
                first_ms = first_ms or now_ms
                text += content
    assert usage is not None
    assert first_ms is not None
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return Turn(text, first_ms, guess_ms, usage["prompt_tokens"], cached)


def conversation(name: str, exchanges: int) -> Messages:
    """A long one that ends with a question, and begins as no other does."""
    talk: Messages = []
    for index in range(exchanges):
        asked = f"{name}, {index}: " if not index else ""
        talk += [
            {"role": "user", "content": asked + OPENINGS[index % len(OPENINGS)]},
            {"role": "assistant", "content": REPLIES[index % len(REPLIES)]},
        ]
    return [*talk, {"role": "user", "content": OPENINGS[exchanges % len(OPENINGS)]}]


def next_turn(talk: Messages, said: Turn, question: str) -> Messages:
    """The conversation after an answer, with another question."""
    return [*talk, {"role": "assistant", "content": said.text}, {"role": "user", "content": question}]


@contextmanager
def widened(target: Path, drafter: Path, kind: str) -> Iterator[tuple[Path, Path]]:
    """Copies of two transformers folders with room for long conversations; the drafter's in a format for devices."""
    with tempfile.TemporaryDirectory() as folder:
        copies = []
        for model in (target, drafter):
            copy = Path(folder) / model.name
            shutil.copytree(model, copy)
            config = json.loads((copy / "config.json").read_text())
            config["max_position_embeddings"] = CONTEXT_TOKENS
            (copy / "config.json").write_text(json.dumps(config))
            copies.append(copy)
        yield copies[0], export(kind, copies[1], Path(folder) / f"drafter-{kind}")


def repetition(url: str, stranger: str, number: int, exchanges: int) -> dict[str, Turn]:
    """All four ways once."""
    talk = conversation(f"Conversation {number}", exchanges)
    cold = ask(url, talk, number)
    talk = next_turn(talk, cold, "And for the day after that, please?")
    warm = ask(url, talk, number)
    for device, name in ((url, "Another"), (stranger, "Third")):
        ask(device, conversation(f"{name} {number}", exchanges), number)
    asked = {
        "returned": (url, next_turn(talk, warm, "What does it cost?")),
        "strange": (stranger, next_turn(talk, warm, "Is it far from here?")),
    }
    told = {"cold": cold, "warm": warm}
    for way in sorted(asked, reverse=bool(number % 2)):
        told[way] = ask(*asked[way], number)
    return told


def summary(turns: Sequence[Turn]) -> dict[str, Any]:
    """Medians, with quartiles beside them."""

    def spread(name: str, values: Sequence[float]) -> dict[str, Any]:
        if len(values) < 2:
            return {name: None}
        low, middle, high = statistics.quantiles(values, n=4)
        return {name: round(middle, 1), f"{name}_quartiles": [round(low, 1), round(high, 1)]}

    guesses = [turn.guess_ms for turn in turns if turn.guess_ms is not None]
    return {
        "prompt_tokens": round(statistics.median(turn.prompt_tokens for turn in turns)),
        "cached_tokens": round(statistics.median(turn.cached_tokens for turn in turns)),
        **spread("first_word_ms", [turn.first_ms for turn in turns]),
        **spread("first_guess_ms", guesses),
        "answers_with_guesses": len(guesses),
    }


@click.command(context_settings={"show_default": True})
@click.option("--target", default=DEMO / "target", type=click.Path(path_type=Path, exists=True), help="Folder.")
@click.option("--drafter", default=DEMO / "drafter", type=click.Path(path_type=Path, exists=True), help="Folder.")
@click.option("--format", "kind", default="gguf", type=click.Choice(["gguf", "onnx"]), help="Of the drafter.")
@click.option("--exchanges", default=60, type=click.IntRange(1), help="Of a conversation before its first answer.")
@click.option("--rounds", default=15, type=click.IntRange(2))
@report.json_option()
def main(target: Path, drafter: Path, kind: str, exchanges: int, rounds: int, json_file: Path | None) -> None:
    """Measure and print a table."""
    told: list[dict[str, Turn]] = []
    options = ["--threads", "1"]
    with (
        widened(target, drafter, kind) as (wide, small),
        VerifierProcess(wide, options=options) as verifier,
        AssistantProcess(verifier.address, drafter=str(small)) as assistant,
    ):
        url = assistant.url.removesuffix("/v1")
        for number in range(rounds + 1):
            with AssistantProcess(verifier.address, drafter=str(small)) as stranger:
                told.append(repetition(url, stranger.url.removesuffix("/v1"), number, exchanges))
    ways = {way: summary([one[way] for one in told[1:]]) for way in told[0]}  # without the warm-up
    table = Table("", *ways)
    for name in next(iter(ways.values())):
        table.add_row(name, *(str(figures.get(name)) for figures in ways.values()))
    print_whole(Console(), table)
    settings = {"target": target.name, "drafter": drafter.name, "format": kind, "rounds": rounds, "answer": TOKENS}
    report.write(json_file, {"settings": settings, **ways})


if __name__ == "__main__":
    main()
