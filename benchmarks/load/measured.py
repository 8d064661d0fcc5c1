"""A verifier in a process of its own, which is asked how it fares."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

Setup = TypeVar("Setup")
Reading = TypeVar("Reading")
ANSWERS_WITHIN_S = 300.0  # it loads a tokenizer first, which takes minutes on a machine that is busy otherwise


class MeasuredVerifier(Generic[Setup, Reading]):
    """Starts the process and waits until it serves; a context manager. address: HOST:PORT."""

    def __init__(self, run: Callable[[Setup, Connection], None], setup: Setup) -> None:
        """run: what the process does; it says the port once it serves, and then `answers`."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=run, args=(setup, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.address = f"127.0.0.1:{self._answer()}"

    def read(self) -> Reading:
        """Ask how it fares. Raises EOFError if it is gone, TimeoutError if it hangs."""
        self._pipe.send("read")
        reading: Reading = self._answer()
        return reading

    def _answer(self) -> Any:
        if not self._pipe.poll(ANSWERS_WITHIN_S):
            raise TimeoutError(f"the verifier's process said nothing for {ANSWERS_WITHIN_S:g} s")
        return self._pipe.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()  # which ends it
        self._process.join(timeout=15)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


async def answers(pipe: Connection, port: int, reading: Callable[[], Any]) -> None:
    """In the process: say where it serves, then how it fares as often as that is asked, until the pipe is closed."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def answer() -> None:
        try:
            pipe.recv()
            pipe.send(reading())
        except (EOFError, OSError):
            loop.remove_reader(pipe.fileno())
            ended.set()

    loop.add_reader(pipe.fileno(), answer)
    pipe.send(port)
    await ended.wait()
