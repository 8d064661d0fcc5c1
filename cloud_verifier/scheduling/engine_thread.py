"""The thread on which an engine steps, and how long a step may take before it is taken for one that will never end."""

from __future__ import annotations

import asyncio
import math
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
STOP_TIMEOUT_S = 30.0  # how long a verifier that stops waits for the step under way
POSITION_TIMEOUT_S = 0.5  # a large target on a CPU reads some positions in a second
FRAMES = 6


class EngineThread:
    """Does one piece of work after the other. A daemon: work that hangs does not keep the process from ending."""

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic, name: str = "engine") -> None:
        """timeout_s: for a step of few positions; each position adds POSITION_TIMEOUT_S."""
        self._timeout_s, self._clock = timeout_s, clock
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._limit_s, self._due_s = 0.0, math.inf  # of the work under way

    def run(self, work: Callable[[], T], positions: int) -> asyncio.Future[T]:
        """The result of `work`, which evaluates so many positions."""
        if self._thread.ident is None:
            self._thread.start()
        job: Future[T] = Future()
        self._limit_s = self._timeout_s + POSITION_TIMEOUT_S * positions
        self._due_s = self._clock() + self._limit_s
        self._jobs.put((job, work))
        return asyncio.wrap_future(job)

    @property
    def trouble(self) -> str:
        """Why the work under way is taken for hanging, in a sentence; empty if it is not."""
        if self._clock() <= self._due_s:
            return ""
        frame = sys._current_frames().get(self._thread.ident or 0)
        frames = traceback.extract_stack(frame)[-FRAMES:] if frame is not None else []
        where = " < ".join(f"{Path(f.filename).name}:{f.lineno} in {f.name}" for f in reversed(frames))
        return f"a step has taken more than {self._limit_s:.0f} s and is at {where or 'an unknown place'}"

    def end(self) -> bool:
        """Do no more; whether the work under way has ended, for which this waits."""
        self._jobs.put(None)
        if self._thread.ident is not None:
            self._thread.join(max(0.0, min(STOP_TIMEOUT_S, self._due_s - self._clock())))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job_and_work := self._jobs.get()) is not None:
            job, work = job_and_work
            if job.set_running_or_notify_cancel():
                try:
                    result = work()
                except BaseException as error:
                    self._due_s = math.inf
                    job.set_exception(error)
                else:
                    self._due_s = math.inf
                    job.set_result(result)
            del job, work, job_and_work  # or else the last step's would stay until the next
