"""Work on one thread, at which principals take turns: one that brings a lot of it delays itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class FairQueue:
    """Lives on the event loop. Of every principal with work the oldest is done next, one principal after the other."""

    def __init__(self, thread_name: str) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=thread_name)
        self._waiting: dict[str, deque[tuple[asyncio.Future[Any], Callable[[], Any]]]] = {}  # whose turn it is first
        self._busy = False

    def run(self, principal: str, work: Callable[[], T]) -> asyncio.Future[T]:
        """The result of `work`, once it was this principal's turn. Work that nobody waits for any more is left out."""
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(principal, deque()).append((result, work))
        self._next()
        return result

    def close(self) -> None:
        """Do no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _next(self) -> None:
        while self._waiting and not self._busy:
            principal = next(iter(self._waiting))
            queue = self._waiting.pop(principal)
            result, work = queue.popleft()
            if queue:
                self._waiting[principal] = queue  # behind all others
            if not result.done():
                loop = result.get_loop()
                try:
                    job = self._thread.submit(work)
                except RuntimeError as error:  # no thread can be started, or the verifier leaves
                    result.set_exception(error)
                    continue
                self._busy = True
                job.add_done_callback(partial(self._done_on_thread, loop, result))

    def _done_on_thread(self, loop: asyncio.AbstractEventLoop, result: asyncio.Future[T], job: Future[T]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the verifier has left
            loop.call_soon_threadsafe(self._done, result, job)

    def _done(self, result: asyncio.Future[T], job: Future[T]) -> None:
        self._busy = False
        if job.cancelled():
            result.cancel()
        elif not result.done():
            if (error := job.exception()) is not None:
                result.set_exception(error)
            else:
                result.set_result(job.result())
        self._next()
