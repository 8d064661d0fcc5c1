"""Throw messages at a verifier by the million; a case that breaks something is shortened, printed and kept.

Most messages skip gRPC: they are serialised, parsed and handed to the service's own handler, on one thread, so that a
case runs the same way every time. A share goes over sockets, and some connections speak HTTP/2 as nobody should.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import psutil
from rich.console import Console
from rich.progress import Progress

from benchmarks import report
from benchmarks.fuzz import http2
from benchmarks.fuzz.generate import generate, with_callers
from benchmarks.fuzz.operations import Operation, dumps, loads
from benchmarks.fuzz.shrink import shrink
from benchmarks.fuzz.world import WarpedLoop, World, world

SAMPLES = 20  # of the process's memory


def problems(case: Sequence[Operation], *, sockets: bool = False, keys: bool = False) -> list[str]:
    """What a case breaks in a verifier of its own."""

    async def play() -> list[str]:
        async with world(sockets=sockets, keys=keys) as subject:
            return await subject.play(case)

    with asyncio.Runner(loop_factory=WarpedLoop) as runner:
        return runner.run(play())


class Run:
    """Cases one after the other until so many messages are sent; stops at the first that breaks something."""

    def __init__(self, seed: int, messages: int, keys: bool, progress: Progress) -> None:
        self._keys = keys
        self._seed, self._goal, self._progress = seed, messages, progress
        self._task = progress.add_task("messages", total=messages)
        self.sent = self.cases = 0
        self.refusals: Counter[str] = Counter()
        self.rss_mib: list[float] = []
        self.failed: tuple[int, list[str]] | None = None

    async def cases_until(self, subject: World, messages: int) -> None:
        """Play cases until `messages` have been sent in all."""
        before = self.sent
        while self.sent < messages and self.failed is None:
            found = await subject.play(_case(self._seed, self.cases, self._keys))
            if found:
                self.failed = (self.cases, found)
            self.cases += 1
            self.sent = before + subject.messages
            self._progress.update(self._task, completed=self.sent)
            if self.sent * SAMPLES >= self._goal * (len(self.rss_mib) + 1):
                self.rss_mib.append(round(psutil.Process().memory_info().rss / 2**20, 1))
        self.refusals.update(subject.refusals)

    async def connections(self, subject: World, count: int) -> None:
        """Say what is no gRPC on so many connections."""
        rng = random.Random(f"{self._seed}/http2")
        for number in range(count):
            await http2.say(subject.port, http2.connection(rng))
            if number % 100 == 99 and self.failed is None and (found := await subject.play([])):
                self.failed = (-1, found)


def _case(seed: int, number: int, keys: bool) -> list[Operation]:
    case = generate(seed, number)
    return with_callers(case, seed, number) if keys else case


async def _run(seed: int, messages: int, socket_share: float, connections: int, keys: bool, progress: Progress) -> Run:
    run = Run(seed, messages, keys, progress)
    async with world(sockets=False, keys=keys) as subject:
        await run.cases_until(subject, round(messages * (1 - socket_share)))
    if run.failed is None:
        async with world(sockets=True, keys=keys) as subject:
            await run.connections(subject, connections)
            await run.cases_until(subject, messages)
    return run


def _show_failure(seed: int, number: int, keys: bool, found: list[str], console: Console) -> None:
    console.print(f"[bold red]seed {seed}, case {number} breaks something:[/] {found[0]}", highlight=False)
    if number < 0:
        return
    case = _case(seed, number, keys)
    if problems(case, keys=keys):
        case = shrink(case, lambda shorter: bool(problems(shorter, keys=keys)))
        console.print(f"shortened to {len(case)} operations; keep them with --replay:", highlight=False)
    else:
        console.print("alone, without sockets, it breaks nothing; here it is whole:", highlight=False)
    sys.stdout.write(dumps(case))


@click.command(context_settings={"show_default": True})
@click.option("--messages", default=1_000_000, type=click.IntRange(1))
@click.option("--seed", default=1, type=int)
@click.option("--socket-share", default=0.05, type=click.FloatRange(0, 1), help="Of the messages, over real sockets.")
@click.option("--connections", default=2000, type=click.IntRange(0), help="That speak no gRPC.")
@click.option("--keys", is_flag=True, help="The verifier asks for keys, which come and go, and has quotas.")
@click.option("--replay", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Play one case instead.")
@report.json_option()
def main(
    messages: int,
    seed: int,
    socket_share: float,
    connections: int,
    keys: bool,
    replay: Path | None,
    json_file: Path | None,
) -> None:
    """Throw messages at a verifier; exit code 1 if anything breaks."""
    console = Console(stderr=True)
    if replay is not None:
        found = problems(loads(replay.read_text()), keys=keys)
        console.print("\n".join(found) or "nothing breaks", highlight=False)
        sys.exit(bool(found))
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    with Progress(console=console) as progress, asyncio.Runner(loop_factory=WarpedLoop) as runner:
        run = runner.run(_run(seed, messages, socket_share, connections, keys, progress))
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    figures: dict[str, Any] = {
        "seed": seed,
        "messages": run.sent,
        "cases": run.cases,
        "keys": keys,
        "socket_share": socket_share,
        "connections_without_grpc": connections,
        "broken": [] if run.failed is None else run.failed[1],
        "seconds": round(wall_s, 1),
        "cpu_seconds": round(cpu_s, 1),
        "messages_per_cpu_second": round(run.sent / cpu_s),
        "refusals": dict(run.refusals.most_common()),
        "rss_mib": run.rss_mib,
    }
    console.print_json(data=figures)
    report.write(json_file, figures)
    if run.failed is not None:
        number, found = run.failed
        _show_failure(seed, number, keys, found, console)
        sys.exit(1)


if __name__ == "__main__":
    main()
