"""From a question to the news of its choices, all of them at once over the one client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, TypeVar

from edge_client.assistant.requests import Question
from edge_client.assistant.ride import RideView
from edge_client.client import AsyncEdgeClient
from edge_client.types import OfflineAnswers, RideSettings, StreamChunk

T = TypeVar("T")


@dataclass(frozen=True)
class News:
    """What is new about one choice. view: of its ride, if that is to be told."""

    choice: int
    chunk: StreamChunk
    view: RideView | None


async def answers(client: AsyncEdgeClient, question: Question, offline: OfflineAnswers) -> AsyncGenerator[News, None]:
    """News of all choices as they come; closing it cancels what still runs at the verifier.

    offline: whether the device may finish them alone.

    Raises SessionError, and ValueError for an unusable prompt.
    """
    choices = range(len(question.prompts) * question.n)
    if len(choices) == 1:
        async with aclosing(_choice(client, question, offline, 0)) as one:
            async for news in one:
                yield news
        return
    queue: asyncio.Queue[News | Exception] = asyncio.Queue()
    tasks = [asyncio.create_task(_collect(_choice(client, question, offline, choice), queue)) for choice in choices]
    running = len(tasks)
    try:
        while running:
            heard = await queue.get()
            if isinstance(heard, Exception):
                raise heard
            running -= heard.chunk.output is not None
            yield heard
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _choice(
    client: AsyncEdgeClient, question: Question, offline: OfflineAnswers, choice: int
) -> AsyncGenerator[News, None]:
    view = RideView() if question.ride else None
    diary = view.diary if view else None
    ride = RideSettings(model=question.model, drafts=question.drafts, diary=diary, offline_answers=offline)
    prompt = question.prompts[choice // question.n]
    stream = client.stream(prompt, question.params, seed=question.seed_of(choice), ride=ride)
    async with aclosing(stream):
        async for chunk in stream:
            yield News(choice, chunk, view)


async def _collect(choice: AsyncGenerator[News, None], queue: asyncio.Queue[News | Exception]) -> None:
    try:
        async with aclosing(choice):
            async for news in choice:
                queue.put_nowait(news)
    except Exception as error:  # for whoever reads the queue
        queue.put_nowait(error)


class Patient(Generic[T]):
    """The next item of an iterator, or None for every so many seconds without one; the iterator is left in peace."""

    def __init__(self, items: AsyncIterator[T], every_s: float) -> None:
        self._items, self._every_s = items, every_s
        self._pending: asyncio.Task[T] | None = None

    async def next(self) -> T | None:
        """Raises StopAsyncIteration at the end, and what the iterator raises."""
        if self._pending is None:
            self._pending = asyncio.ensure_future(anext(self._items))
        done, _ = await asyncio.wait({self._pending}, timeout=self._every_s)
        if not done:
            return None
        pending, self._pending = self._pending, None
        return pending.result()

    async def aclose(self) -> None:
        """Wait for nothing more."""
        if self._pending is not None:
            self._pending.cancel()
            await asyncio.gather(self._pending, return_exceptions=True)


def in_order(outputs: dict[int, T]) -> Sequence[T]:
    """By choice."""
    return [outputs[choice] for choice in sorted(outputs)]
