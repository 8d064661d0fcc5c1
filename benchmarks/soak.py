"""An hour of churn against one verifier process: does its memory stay flat?

Devices open sessions, answer them to the end, cancel them in the middle, cut the stream and resume, or cut it and never
come back. The process' memory and its objects are read at even intervals; a straight line through the readings after a
warm-up tells what they grow by, and how sure that is.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import grpc
import numpy as np
from outrider.v1 import verifier_pb2 as pb
from outrider.v1 import verifier_pb2_grpc as pb_grpc
from rich.console import Console
from rich.progress import Progress

from benchmarks import report
from benchmarks.load.answers import LEAST_TOKENS, MOST_TOKENS, described
from benchmarks.load.profile import MemoryBound
from benchmarks.load.verifier import LoadVerifier, Reading, VerifierSetup
from benchmarks.load.wire import write

FATES = ("answered", "cancelled", "cut and resumed", "cut for good")
LEASE_S = 2.0
WARM_UP = 0.2  # of the time: caches fill, allocators reach their size
LEAST_HOURS = 0.25  # for a verdict
FLAT_MIB_PER_HOUR = 8.0  # the least growth that is called one
PROFILE = MemoryBound(4.0, 0.01, 0.01, 128)


@dataclass(frozen=True)
class Slope:
    """Growth per hour, and half the width of its 95 % confidence interval."""

    per_hour: float
    plus_minus: float

    def flat(self, least: float) -> bool:
        """Whether there is no growth that is both certain and at least so large."""
        return self.per_hour - self.plus_minus <= 0 or self.per_hour < least


def slope(at_s: list[float], values: list[float]) -> Slope:
    """Of a straight line through the readings.

    Neighbouring readings are not independent; so the error is that of a twelfth of them: means of stretches.
    """
    groups = max(3, min(12, len(values) // 2))
    x = np.array([chunk.mean() for chunk in np.array_split(np.array(at_s) / 3600, groups)])
    y = np.array([chunk.mean() for chunk in np.array_split(np.array(values), groups)])
    spread = float(((x - x.mean()) ** 2).sum())
    growth = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
    left = y - y.mean() - growth * (x - x.mean())
    error = (float((left**2).sum()) / max(1, groups - 2) / spread) ** 0.5
    return Slope(growth, 2.23 * error)  # Student's t for ten degrees of freedom


class Churn:
    """Devices that come and go until told to stop. fates: what became of sessions; wrong: of them, with other words."""

    def __init__(self, address: str, seed: int) -> None:
        self.fates: Counter[str] = Counter()
        self.wrong = 0
        self._channel = grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        self._stub: Any = pb_grpc.VerifierServiceStub(self._channel)
        self._rng = random.Random(seed)
        self._written = described(16)

    async def run(self, until_s: float) -> None:
        """One session after the other."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until_s):
                for number in itertools.count():
                    fate = FATES[number % len(FATES)]
                    await self._session(fate)
                    self.fates[fate] += 1
        await self._channel.close()

    async def _session(self, fate: str) -> None:
        written = self._rng.choice(self._written)
        tokens = self._rng.randint(LEAST_TOKENS, MOST_TOKENS)
        leaves_at = tokens if fate == "answered" else self._rng.randint(1, tokens - 1)
        opening = pb.Open(protocol_version=1, prompt_ids=pb.TokenIds(ids=written.prompt), want_text=True)
        opening.sampling.max_tokens, opening.sampling.ignore_eos = tokens, True
        session_id, words = await self._stream(opening, [], written.tokens, leaves_at, cancels=fate == "cancelled")
        if fate == "cut and resumed":
            known = len(written.prompt) + len(words)
            again = pb.Open(protocol_version=1, resume=pb.Resume(session_id=session_id, known_length=known))
            try:
                _, words = await self._stream(again, words, written.tokens, tokens, cancels=False)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                # The last words were on their way when the stream was cut, or the lease has ended.
                opening.continue_from.extend(words)
                _, words = await self._stream(opening, words, written.tokens, tokens, cancels=False)
        self.wrong += words != list(written.tokens[: len(words)])

    async def _stream(
        self, opening: pb.Open, words: list[int], text: Any, leaves_at: int, *, cancels: bool
    ) -> tuple[str, list[int]]:
        """Ride one stream until there are so many words; returns the session's id and the words."""
        call = self._stub.Generate()
        words = list(words)
        session_id = ""
        try:
            await call.wait_for_connection()
            await write(call, pb.GenerateRequest(open=opening))
            while (response := await call.read()) is not grpc.aio.EOF:
                kind = response.WhichOneof("message")
                if kind == "opened":
                    session_id = response.opened.session_id
                    prompt = response.opened.prompt_length
                elif kind == "commit":
                    words += response.commit.tokens
                    if len(words) >= leaves_at:
                        break
                    await write(call, pb.GenerateRequest(draft=self._draft(prompt, words, text)))
            if cancels:
                await write(call, pb.GenerateRequest(cancel=pb.Cancel()))
                while await call.read() is not grpc.aio.EOF:
                    pass
        finally:
            call.cancel()
        return session_id, words

    def _draft(self, prompt: int, words: list[int], text: Any) -> pb.Draft:
        """Four guesses, of which the last is right every other time."""
        guesses = list(text[len(words) : len(words) + 4])
        guesses[-1] += self._rng.random() < 0.5
        return pb.Draft(start=prompt + len(words), tokens=guesses, known_length=prompt + len(words))


async def churn(
    verifier: LoadVerifier, devices: int, hours: float, every_s: float, progress: Progress
) -> dict[str, Any]:
    """Let devices come and go, and read the process meanwhile."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + hours * 3600
    churns = [Churn(verifier.address, seed) for seed in range(devices)]
    tasks = [asyncio.create_task(one.run(until_s)) for one in churns]
    readings: list[Reading] = []
    bar = progress.add_task("churn", total=hours * 3600)
    while loop.time() < until_s:
        done, _ = await asyncio.wait(tasks, timeout=min(every_s, max(0.0, until_s - loop.time())))
        for task in done:
            task.result()
        readings.append(verifier.read())
        progress.update(bar, completed=hours * 3600 - max(0.0, until_s - loop.time()))
    await asyncio.gather(*tasks)
    await asyncio.sleep(LEASE_S + 1.0)  # the leases of those who never came back
    return _findings(readings, verifier.read(), churns)


def _findings(readings: list[Reading], last: Reading, churns: list[Churn]) -> dict[str, Any]:
    began_s = readings[0].at_s
    steady = [r for r in readings if r.at_s - began_s >= WARM_UP * (readings[-1].at_s - began_s)]
    at_s = [r.at_s for r in steady]
    memory = slope(at_s, [r.rss_bytes / 2**20 for r in steady])
    objects = slope(at_s, [float(r.objects) for r in steady])
    fates: Counter[str] = sum((one.fates for one in churns), Counter())
    return {
        "sessions": dict(fates),
        "wrong_words": sum(one.wrong for one in churns),
        "sessions_left": last.sessions,
        "tasks_left": last.tasks,
        "rss_mib": [round(r.rss_bytes / 2**20, 1) for r in readings],
        "objects": [r.objects for r in readings],
        "memory_mib_per_hour": {name: round(value, 2) for name, value in asdict(memory).items()},
        "objects_per_hour": {name: round(value) for name, value in asdict(objects).items()},
        "flat": memory.flat(FLAT_MIB_PER_HOUR),
    }


@click.command(context_settings={"show_default": True})
@click.option("--hours", default=1.0, type=click.FloatRange(0.005))
@click.option("--devices", default=48, type=click.IntRange(1), help="That come and go at one time.")
@click.option("--every-s", default=5.0, type=click.FloatRange(0.1), help="Between two readings.")
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(hours: float, devices: int, every_s: float, json_file: Path | None) -> None:
    """Churn for a while, and say whether memory is flat; fails if it is not."""
    console = Console()
    every_s = min(every_s, hours * 3600 / 30)
    began_s = time.perf_counter()
    # Those who never come back keep their places for a while.
    setup = VerifierSetup(described(16), PROFILE, max_sequences=8 * devices, lease_s=LEASE_S)
    with LoadVerifier(setup) as verifier, Progress(console=console) as progress:
        found = asyncio.run(churn(verifier, devices, hours, every_s, progress))
    memory, objects = found["memory_mib_per_hour"], found["objects_per_hour"]
    total = sum(found["sessions"].values())
    console.print(f"{total} sessions in {(time.perf_counter() - began_s) / 60:.1f} minutes: {found['sessions']}")
    long_enough = hours >= LEAST_HOURS
    verdict = "too short to tell" if not long_enough else "flat" if found["flat"] else "NOT flat"
    console.print(
        f"memory: {found['rss_mib'][0]:.0f} to {found['rss_mib'][-1]:.0f} MiB, after the warm-up "
        f"{memory['per_hour']:+.2f} ± {memory['plus_minus']:.2f} MiB per hour: {verdict}"
    )
    console.print(f"objects: {objects['per_hour']:+d} ± {objects['plus_minus']} per hour")
    report.write(json_file, {"settings": {"hours": hours, "devices": devices, "lease_s": LEASE_S}} | found)
    if found["wrong_words"] or found["sessions_left"]:
        raise click.ClickException(
            f"{found['wrong_words']} sessions had other words, and {found['sessions_left']} were left behind"
        )
    if long_enough and not found["flat"]:
        raise click.ClickException("the verifier's memory grows")


if __name__ == "__main__":
    main()
