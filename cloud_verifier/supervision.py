"""Background work: tasks and threads that run until the verifier leaves. If one ends before, the verifier has failed.

A verifier whose scheduler has ended would go on to take sessions and never answer one. So it leaves instead, as if it
had been told to, and its process exits with an error, for whatever started it to start it again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine
from functools import partial
from typing import Any

from cloud_verifier.log_redaction import log_failure, without_words

log = logging.getLogger(__name__)

THREAD_WATCHED_EVERY_S = 1.0


class Supervisor:
    """The background work of one verifier.

    failed: set once any of it has ended by itself, or `fail` was called. failure: then a sentence that says why.
    """

    def __init__(self) -> None:
        self.failed = asyncio.Event()
        self.failure = ""
        self._tasks: list[asyncio.Task[Any]] = []

    def start(self, name: str, work: Coroutine[Any, Any, Any]) -> None:
        """Run until `stop`. name: for the sentence, such as "the scheduler"."""
        task = asyncio.create_task(_without_exits(work))
        self._tasks.append(task)
        task.add_done_callback(partial(self._ended, name))

    def watch(self, name: str, thread: threading.Thread) -> None:
        """A thread that is to live until `stop`."""
        self.start(name, _until_it_ends(thread))

    def fail(self, sentence: str) -> None:
        """Count the verifier as failed. sentence: why, in words of ours."""
        log.error("%s", sentence)
        if not self.failed.is_set():
            self.failure = sentence
            self.failed.set()

    async def stop(self) -> None:
        """End all of it."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, name: str, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if task not in self._tasks:  # it was stopped
            return
        why = "it returned" if error is None else without_words(error)
        if error is not None:
            log_failure(log, f"{name} failed", error)
        if not self.failed.is_set():
            self.failure = f"{name} ended unexpectedly ({why})"
            self.failed.set()


async def _without_exits(work: Coroutine[Any, Any, Any]) -> None:
    """asyncio would let a SystemExit, such as a library may raise, end the whole loop with nobody told."""
    try:
        await work
    except (SystemExit, KeyboardInterrupt) as error:
        raise RuntimeError("background work asked the process to exit") from error


async def _until_it_ends(thread: threading.Thread) -> None:
    while thread.is_alive():
        await asyncio.sleep(THREAD_WATCHED_EVERY_S)
