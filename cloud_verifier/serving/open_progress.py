"""Tells a device that its session is being opened, for as long as that takes.

Without this, a full verifier and one that reads a long prompt look like one that cannot be reached.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Any, Self

from outrider.v1 import verifier_pb2 as pb

QUEUE_POSITION = "outrider-queue-position"
PROGRESS_EVERY_S = 0.5  # devices tell people after 0.8 s of silence that they wait for the network


class OpenProgressTeller:
    """Context manager of one stream, from its Open until its Opened may be written.

    incremental: the device takes OpenProgress. Others are told of the queue only, in the initial metadata.
    """

    def __init__(self, context: Any, *, incremental: bool) -> None:
        self._context, self._incremental = context, incremental
        self._position = 0
        self._over = False
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._incremental:
            self._task = asyncio.create_task(self._tell())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._over = True
            self._news.set()
            await asyncio.gather(self._task, return_exceptions=True)  # a stream that broke is noticed by its own task

    async def queued(self, position: int) -> None:
        """The session waits for a place; position: sessions in the queue up to it."""
        if not self._incremental:
            await self._context.send_initial_metadata(((QUEUE_POSITION, str(position)),))
        self._position = position
        self._news.set()

    def placed(self) -> None:
        """The session waits no longer."""
        self._position = 0

    async def _tell(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), PROGRESS_EVERY_S)
            if self._over:
                return
            self._news.clear()
            progress = pb.OpenProgress(queue_position=self._position)
            await self._context.write(pb.GenerateResponse(open_progress=progress))
