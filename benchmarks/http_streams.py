"""What the assistant's HTTP adds, and how fair it is: against the bare contract at a round trip of 0.

Time to first byte: a request to a running `edge-client serve` until the first word's event, and in turns an Open on a
plain gRPC stream until the first commit; a prompt is never asked twice. Second turn: the first word of a conversation's
second answer, and of a conversation of the same length that nobody has heard. Fairness: many streams at once, each of
the same length; the slowest against the median.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import click
import grpc
from outrider.v1 import verifier_pb2 as pb
from outrider.v1 import verifier_pb2_grpc as pb_grpc
from rich.console import Console
from rich.table import Table

from benchmarks import report
from netlab.assistant_process import AssistantProcess
from netlab.console import print_whole
from netlab.experiments.rig import DEMO
from netlab.prompts import OPENINGS
from netlab.verifier_process import VerifierProcess

Messages = list[dict[str, str]]
TTFB_LIMIT_MS = 15.0
FAIRNESS_LIMIT = 1.5


class Answer(NamedTuple):
    """One HTTP stream: its text, milliseconds to the first word and to the end, tokens per second after the first."""

    text: str
    first_ms: float
    total_ms: float


async def over_http(url: str, messages: Messages, tokens: int, seed: int, *, to_its_end: bool = False) -> Answer:
    """Ask on a connection of its own, which stands before the clock starts, as an app's would.

    to_its_end: the answer may end before it has so many tokens, as one must that a next turn goes on from.
    """
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    fields = {"messages": messages, "max_tokens": tokens, "seed": seed, "ignore_eos": not to_its_end, "stream": True}
    body = json.dumps(fields).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
    began_s = time.perf_counter()
    writer.write(head.encode() + body)
    first_s, texts = 0.0, []
    while not (line := await reader.readline()).startswith(b"data: [DONE]"):
        if not line:
            raise click.ClickException("the assistant ended a stream in the middle; is it well?")
        if not line.startswith(b"data: "):
            continue
        said = json.loads(line.removeprefix(b"data: "))
        if "error" in said:
            raise click.ClickException(said["error"]["message"])
        if content := said["choices"][0]["delta"].get("content"):
            first_s = first_s or time.perf_counter()
            texts.append(content)
    total_s = time.perf_counter() - began_s
    writer.close()
    await writer.wait_closed()
    return Answer("".join(texts), (first_s - began_s) * 1e3, total_s * 1e3)


def over_grpc(stub: pb_grpc.VerifierServiceStub, messages: Messages, seed: int) -> float:
    """Milliseconds from an Open to the first commit on a channel that stands."""
    request = pb.Open(protocol_version=1, seed=seed, want_text=True, sampling=pb.SamplingParams(max_tokens=1))
    for message in messages:
        request.chat.messages.add(role=message["role"], content=[pb.ContentPart(text=message["content"])])
    began_s = time.perf_counter()
    elapsed_ms = 0.0
    for response in stub.Generate(iter([pb.GenerateRequest(open=request)])):
        if response.WhichOneof("message") == "commit":
            elapsed_ms = elapsed_ms or (time.perf_counter() - began_s) * 1e3
    return elapsed_ms


def fresh_prompts() -> Iterator[str]:
    """Prompts of nearly the same length, none of which begins as another does: no cache has heard them."""
    for index in itertools.count():
        yield f"{index:04d} {OPENINGS[index % len(OPENINGS)]}"


def user(text: str) -> Messages:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def first_bytes(url: str, verifier: str, rounds: int, prompts: Iterator[str]) -> dict[str, float]:
    """Medians of both ways, in turns, and of their differences."""
    http, bare = [], []
    with grpc.insecure_channel(verifier) as channel:
        stub = pb_grpc.VerifierServiceStub(channel)
        for seed in range(rounds + 2):
            bare.append(over_grpc(stub, user(next(prompts)), seed))
            http.append(asyncio.run(over_http(url, user(next(prompts)), 1, seed)).first_ms)
    http, bare = http[2:], bare[2:]  # without the warm-up
    added = [one - other for one, other in zip(http, bare, strict=True)]
    return {
        "http_first_byte_ms": round(statistics.median(http), 2),
        "grpc_first_commit_ms": round(statistics.median(bare), 2),
        "added_ms": round(statistics.median(added), 2),
    }


def second_turns(url: str, rounds: int, prompts: Iterator[str]) -> dict[str, float]:
    """Medians of the time to the first word in a second turn, and of a conversation as long that is new."""
    warm, cold = [], []
    for seed in range(rounds):
        first = user(next(prompts))
        answer = asyncio.run(over_http(url, first, 96, seed, to_its_end=True))
        again = user("And for the day after that, please?")
        talk = [*first, {"role": "assistant", "content": answer.text}, *again]
        warm.append(asyncio.run(over_http(url, talk, 1, seed)).first_ms)
        strange = [{"role": "user", "content": f"New {first[0]['content']}"}, *talk[1:]]
        cold.append(asyncio.run(over_http(url, strange, 1, seed)).first_ms)
    return {
        "second_turn_first_byte_ms": round(statistics.median(warm), 2),
        "new_conversation_first_byte_ms": round(statistics.median(cold), 2),
    }


async def many(url: str, streams: int, tokens: int, prompts: Iterator[str]) -> Sequence[Answer]:
    """So many streams at once."""
    asked = [over_http(url, user(next(prompts)), tokens, seed) for seed in range(streams)]
    return await asyncio.gather(*asked)


def fairness(answers: Sequence[Answer]) -> dict[str, float]:
    """How the streams compare in total time, and in time to the first word."""
    totals = [answer.total_ms for answer in answers]
    firsts = [answer.first_ms for answer in answers]
    return {
        "streams": len(answers),
        "median_total_ms": round(statistics.median(totals), 1),
        "slowest_total_ms": round(max(totals), 1),
        "slowest_over_median": round(max(totals) / statistics.median(totals), 3),
        "median_first_byte_ms": round(statistics.median(firsts), 1),
        "slowest_first_byte_ms": round(max(firsts), 1),
    }


@click.command(context_settings={"show_default": True})
@click.option("--drafter", default=str(DEMO / "drafter.gguf"), help="Of the assistant.")
@click.option("--rounds", default=40, type=click.IntRange(3), help="Of single requests.")
@click.option("--streams", default=32, type=click.IntRange(2), help="At once.")
@click.option("--tokens", default=64, type=click.IntRange(2), help="Of each of them.")
@report.json_option()
def main(drafter: str, rounds: int, streams: int, tokens: int, json_file: Path | None) -> None:
    """Measure and print a table."""
    prompts = fresh_prompts()
    options = ["--threads", "1", "--max-sessions", str(streams + 1)]
    with (
        VerifierProcess(DEMO / "target", options=options) as verifier,
        AssistantProcess(verifier.address, drafter=drafter) as assistant,
    ):
        rows: dict[str, Any] = first_bytes(assistant.url, verifier.address, rounds, prompts)
        rows |= second_turns(assistant.url, max(3, rounds // 4), prompts)
        rows |= fairness(asyncio.run(many(assistant.url, streams, tokens, prompts)))
    rows |= {"added_ms_limit": TTFB_LIMIT_MS, "slowest_over_median_limit": FAIRNESS_LIMIT}
    table = Table("figure", "value")
    for name, value in rows.items():
        table.add_row(name, str(value))
    print_whole(Console(), table)
    report.write(json_file, {"settings": {"drafter": Path(drafter).name, "rounds": rounds, "tokens": tokens}, **rows})


if __name__ == "__main__":
    main()
