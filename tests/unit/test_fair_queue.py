"""Principals take turns at one thread, whatever each of them brings."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from cloud_verifier.serving.fair_queue import FairQueue

DEADLINE_S = 30


class Bench:
    """A queue whose thread is busy until `release`, and the order in which work was done."""

    def __init__(self) -> None:
        self.queue = FairQueue("test")
        self.done: list[str] = []
        self.release = threading.Event()
        self.blocking = self.queue.run("blocker", partial(self.release.wait, DEADLINE_S))

    def bring(self, principal: str, count: int) -> list[asyncio.Future[None]]:
        return [self.queue.run(principal, partial(self.done.append, f"{principal}{i}")) for i in range(count)]


def run(test: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        bench = Bench()
        async with asyncio.timeout(DEADLINE_S):
            await test(bench)
        bench.queue.close()

    asyncio.run(whole())


def test_one_with_much_work_delays_itself() -> None:
    async def test(bench: Bench) -> None:
        work = [*bench.bring("mallory", 4), *bench.bring("ann", 1), *bench.bring("bob", 2)]
        bench.release.set()
        await asyncio.gather(*work)
        assert bench.done == ["mallory0", "ann0", "bob0", "mallory1", "bob1", "mallory2", "mallory3"]

    run(test)


def test_work_that_nobody_waits_for_is_left_out() -> None:
    async def test(bench: Bench) -> None:
        left, stays = bench.bring("mallory", 2)
        left.cancel()
        bench.blocking.cancel()  # it is under way: what comes next still waits for its end
        bench.release.set()
        await stays
        assert bench.done == ["mallory1"]

    run(test)


def test_work_that_raises_raises_where_it_is_waited_for() -> None:
    async def test(bench: Bench) -> None:
        def fail() -> None:
            raise ValueError("told to fail")

        failing, (after,) = bench.queue.run("ann", fail), bench.bring("ann", 1)
        bench.release.set()
        with pytest.raises(ValueError, match="told to fail"):
            await failing
        await after

    run(test)


def test_a_thread_that_cannot_be_used_is_an_error_and_nothing_waits() -> None:
    async def test(bench: Bench) -> None:
        bench.release.set()
        await bench.blocking
        bench.queue.close()
        for _ in range(2):
            with pytest.raises(RuntimeError):
                await bench.queue.run("ann", bench.release.wait)

    run(test)
