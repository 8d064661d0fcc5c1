"""Let devices come and go for an hour, read the verifier's process meanwhile, and say whether its memory is flat.

A straight line through the readings after a warm-up tells what it grows by, and how sure that is.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from benchmarks import report
from benchmarks.soak.churn import Churn, Device, Question, questions
from benchmarks.soak.slope import slope
from benchmarks.soak.verifier import Reading, SoakSetup, SoakVerifier
from cloud_verifier.security.keys import KeyFile

LEASE_S = 2.0
WARM_UP = 0.2  # of the time: caches fill, allocators reach their size
LEAST_HOURS = 0.25  # for a verdict
FLAT_MIB_PER_HOUR = 8.0  # the least growth that is called one
PRINCIPALS = ("ann", "bob", "carol")
QUOTA = {"max_sessions": 64, "tokens_per_minute": 10**9}  # counted, and never in the way
GUEST_TOKENS = 8


class Soak:
    """One run: churn, readings, and a guest between every two of them."""

    def __init__(self, verifier: SoakVerifier, keys: KeyFile, tell: Callable[[float], None]) -> None:
        """tell: hears how many seconds have passed."""
        self._verifier, self._keys, self._tell = verifier, keys, tell
        self.readings: list[Reading] = []
        self.churns: list[Churn] = []
        self.guests = 0
        self.wrong_guests = 0

    async def run(self, devices: int, seconds: float, every_s: float) -> None:
        """Raises whatever a device meets that it should not."""
        owned = [self._keys.add(name, QUOTA) for name in PRINCIPALS]
        asked = await questions(self._verifier.address, owned[0])
        loop = asyncio.get_running_loop()
        until_s = loop.time() + seconds
        for number in range(devices):
            device = Device(self._verifier.address, owned[number % len(owned)], number)
            self.churns.append(Churn(device, asked))
        tasks = [asyncio.create_task(churn.run(until_s)) for churn in self.churns]
        while loop.time() < until_s:
            done, _ = await asyncio.wait(tasks, timeout=min(every_s, max(0.0, until_s - loop.time())))
            for task in done:
                task.result()
            self.readings.append(self._verifier.read())
            self._tell(seconds - max(0.0, until_s - loop.time()))
            if not done:
                await self._guest(asked[self.guests % len(asked)])
        await asyncio.gather(*tasks)
        await asyncio.sleep(LEASE_S + 2.0)  # the leases of those who never came back

    async def _guest(self, question: Question) -> None:
        """A principal that nobody has heard of before, and will not again."""
        self.guests += 1
        name = f"guest {self.guests}"
        key = self._keys.add(name, QUOTA)
        device = Device(self._verifier.address, key)
        words = await device.ride(question.opening, leaves_at=GUEST_TOKENS, cancels=True)
        self.wrong_guests += words != list(question.words[: len(words)])
        await device.close()
        self._keys.remove(name)


def findings(readings: Sequence[Reading], last: Reading, churns: Sequence[Churn]) -> dict[str, Any]:
    """What the readings say. last: when all devices had gone."""
    began_s = readings[0].at_s
    steady = [r for r in readings if r.at_s - began_s >= WARM_UP * (readings[-1].at_s - began_s)]
    at_s = [r.at_s for r in steady]
    memory = slope(at_s, [r.rss_bytes / 2**20 for r in steady])
    blocks = slope(at_s, [float(r.python_blocks) for r in steady])
    fates: Counter[str] = sum((one.fates for one in churns), Counter())
    seconds = readings[-1].at_s - began_s
    return {
        "sessions": dict(fates),
        "streams_cut": sum(one.cut for one in churns),
        "wrong_words": sum(one.wrong for one in churns),
        "left": {"sessions": last.sessions, "pages_used": last.pages_used, "tasks": last.tasks},
        "most": {
            "sessions": max(r.sessions for r in readings),
            "principals": max(r.principals for r in readings),
            "tasks": max(r.tasks for r in readings),
            "series": max(r.series for r in readings),
            "pages_used": max(r.pages_used for r in readings),
            "pages_cached": max(r.pages_cached for r in readings),
        },
        "least_pages_free_when_warm": min(r.pages_free for r in steady),
        "cores": round((readings[-1].cpu_s - readings[0].cpu_s) / seconds, 2),
        "rss_mib": [round(r.rss_bytes / 2**20, 1) for r in readings],
        "python_blocks": [r.python_blocks for r in readings],
        "memory_mib_per_hour": {name: round(value, 2) for name, value in asdict(memory).items()},
        "python_blocks_per_hour": {name: round(value) for name, value in asdict(blocks).items()},
        "flat": memory.flat(FLAT_MIB_PER_HOUR),
    }


@click.command(context_settings={"show_default": True})
@click.option("--hours", default=1.0, type=click.FloatRange(0.005))
@click.option("--devices", default=12, type=click.IntRange(1), help="That come and go at one time.")
@click.option("--step-ms", default=40.0, type=click.FloatRange(0.0), help="Least time of a step.")
@click.option("--every-s", default=5.0, type=click.FloatRange(0.1), help="Between two readings.")
@report.json_option()
def main(hours: float, devices: int, step_ms: float, every_s: float, json_file: Path | None) -> None:
    """Churn for a while, and say whether memory is flat; fails if it is not."""
    console = Console()
    every_s = min(every_s, hours * 3600 / 30)
    began_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        keys = KeyFile(Path(folder) / "keys.toml")
        keys.add("nobody", {})
        with SoakVerifier(SoakSetup(keys.path, step_ms, LEASE_S)) as verifier, Progress(console=console) as progress:
            bar = progress.add_task("churn", total=hours * 3600)
            soak = Soak(verifier, keys, lambda seconds: progress.update(bar, completed=seconds))
            asyncio.run(soak.run(devices, hours * 3600, every_s))
            last = verifier.read()
    found = findings(soak.readings, last, soak.churns) | {"guests": soak.guests}
    memory, blocks = found["memory_mib_per_hour"], found["python_blocks_per_hour"]
    total = sum(found["sessions"].values())
    console.print(f"{total} sessions in {(time.perf_counter() - began_s) / 60:.1f} minutes: {found['sessions']}")
    long_enough = hours >= LEAST_HOURS
    verdict = "too short to tell" if not long_enough else "flat" if found["flat"] else "NOT flat"
    console.print(
        f"memory: {found['rss_mib'][0]:.0f} to {found['rss_mib'][-1]:.0f} MiB, after the warm-up "
        f"{memory['per_hour']:+.2f} ± {memory['plus_minus']:.2f} MiB per hour: {verdict}"
    )
    console.print(f"Python's blocks of memory: {blocks['per_hour']:+d} ± {blocks['plus_minus']} per hour")
    console.print(f"most at one time: {found['most']}")
    settings = {"hours": hours, "devices": devices, "step_ms": step_ms, "lease_s": LEASE_S}
    report.write(json_file, {"settings": settings} | found)
    wrong = found["wrong_words"] + soak.wrong_guests
    if wrong or found["left"]["sessions"] or found["left"]["pages_used"]:
        raise click.ClickException(f"{wrong} sessions had other words or another refusal; left behind: {found['left']}")
    if long_enough and not found["flat"]:
        raise click.ClickException("the verifier's memory grows")


if __name__ == "__main__":
    main()
