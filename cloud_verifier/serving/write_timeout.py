"""A limit for how long a device may leave a message unread, which costs next to nothing for those that are read."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any


class WriteTimeout:
    """Around one write after another: cancels one that takes longer than timeout_s, which then raises TimeoutError.

    `asyncio.timeout` sets a timer and takes it back for every write, and nearly all of them end at once. Here a timer
    that rings looks when the write under way began, and is set again for what is left.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._began_s = 0.0
        self._writing: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rang = False

    def __enter__(self) -> None:
        self._writing, self._began_s = asyncio.current_task(), self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_at(self._began_s + self._timeout_s, self._ring)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        task, self._writing = self._writing, None
        if self._rang and kind is asyncio.CancelledError:
            assert task is not None
            if task.uncancel() == 0:
                raise TimeoutError from error

    def _ring(self) -> None:
        self._timer = None
        if self._writing is None:
            return
        left_s = self._began_s + self._timeout_s - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._ring)
        else:
            self._rang = self._writing.cancel()

    def close(self) -> None:
        """No more writes will come."""
        if self._timer is not None:
            self._timer.cancel()
