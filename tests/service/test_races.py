"""Streams that change hands between two of the service's own waits: too narrow to hit by socket, so made by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import grpc
import pytest
from outrider.v1 import verifier_pb2 as pb

from cloud_verifier.scheduling.scheduler import Scheduler
from cloud_verifier.serving.open_request import Served
from cloud_verifier.serving.service import ServiceSettings, VerifierService
from speculation.pace.base import PATIENCE_UNLIMITED_MS
from tests.harness import LetterCodec
from tests.mock_engine import MockEngine, answer
from tests.service.raw import DEADLINE_S, PROMPT, SEED, opening

START = len(PROMPT)
WORDS = answer(PROMPT, SEED, 8)


class Aborted(grpc.aio.BaseError):
    """As gRPC's own, which cannot be made in Python."""


class Hand:
    """A stream's context: the test decides when a write ends, and how."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue[Any] = asyncio.Queue()
        self.written: list[pb.GenerateResponse] = []
        self.writing = asyncio.Event()
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.write_error: Exception | None = None
        self.status: tuple[str, str] | None = None

    async def read(self) -> Any:
        return await self.requests.get()

    async def write(self, response: pb.GenerateResponse) -> None:
        self.writing.set()
        await self.may_write.wait()
        if self.write_error is not None:
            raise self.write_error
        self.written.append(response)

    def time_remaining(self) -> float | None:
        return None  # no deadline

    async def abort(self, code: grpc.StatusCode, details: str, metadata: Any) -> None:
        self.status = (code.name, details)
        raise Aborted

    @property
    def tokens(self) -> list[tuple[int, list[int]]]:
        """Commits: start and tokens."""
        return [(w.commit.start, list(w.commit.tokens)) for w in self.written if w.WhichOneof("message") == "commit"]

    def send(self, **message: Any) -> None:
        self.requests.put_nowait(pb.GenerateRequest(**message))


class Bench:
    """A service without a server."""

    def __init__(self) -> None:
        engine = MockEngine()
        self.scheduler = Scheduler(engine)
        served = Served("mock", engine.info, LetterCodec())  # type: ignore[arg-type]
        self.service = VerifierService(served, self.scheduler, ServiceSettings(lease_s=3600))
        self._tasks = [asyncio.create_task(self.scheduler.run())]

    def stream(self, hand: Hand) -> asyncio.Task[None]:
        task = asyncio.create_task(self.service.Generate(None, hand))  # type: ignore[arg-type]
        self._tasks.append(task)
        return task

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.001)


async def opened(bench: Bench) -> tuple[Hand, str]:
    """A stream with one token told, whose session waits for its device."""
    hand = Hand()
    bench.stream(hand)
    hand.send(open=opening(sampling=pb.SamplingParams(max_tokens=8), patience_ms=PATIENCE_UNLIMITED_MS))
    await until(lambda: len(hand.tokens) == 1)
    return hand, hand.written[0].opened.session_id


def resuming(session_id: str) -> pb.Open:
    return opening(resume=pb.Resume(session_id=session_id, known_length=START))


async def replaced_behind_a_pong(bench: Bench) -> None:
    """The old writer waits for its turn when the new stream comes; its turn then takes nothing from the new one."""
    old, session_id = await opened(bench)
    old.may_write.clear()
    old.writing.clear()
    old.send(ping=pb.Ping(sent_at_us=1))
    await old.writing.wait()
    new = Hand()
    new.may_write.clear()
    bench.stream(new)
    (session,) = bench.service._sessions.values()
    session.line.draft(START + 1, WORDS[1:3], START + 1, 64)  # so that the old writer wakes
    bench.scheduler.wake()
    await until(lambda: session.line.length == START + 4)
    new.send(open=resuming(session_id))
    await new.writing.wait()
    old.may_write.set()
    await until(lambda: old.status is not None)
    assert old.status is not None
    assert old.status[0] == "ABORTED"
    new.may_write.set()
    await until(lambda: len(new.tokens) == 1)
    assert new.tokens == [(START, WORDS[:4])]


async def replaced_while_opening(bench: Bench) -> None:
    """Of two resumes the later one has the session, even if the first is still being answered."""
    _, session_id = await opened(bench)
    first, second = Hand(), Hand()
    first.may_write.clear()
    bench.stream(first)
    first.send(open=resuming(session_id))
    await first.writing.wait()
    bench.stream(second)
    second.send(open=resuming(session_id))
    await until(lambda: len(second.tokens) == 1)
    first.may_write.set()
    await until(lambda: first.status is not None)
    assert first.status is not None
    assert first.status[0] == "ABORTED"
    assert first.tokens == []
    second.send(draft=pb.Draft(start=START + 1, tokens=WORDS[1:], known_length=START + 1))
    await until(lambda: len(second.tokens) == 2)
    assert second.tokens == [(START, WORDS[:1]), (START + 1, WORDS[1:])]


async def broken_while_opening(bench: Bench) -> None:
    """A resume that breaks before it was answered does not detach the stream that came after it."""
    _, session_id = await opened(bench)
    first, second = Hand(), Hand()
    first.may_write.clear()
    first.write_error = Aborted("the connection is gone")
    broken = bench.stream(first)
    first.send(open=resuming(session_id))
    await first.writing.wait()
    bench.stream(second)
    second.send(open=resuming(session_id))
    await until(lambda: len(second.tokens) == 1)
    first.may_write.set()
    await asyncio.wait({broken})
    (session,) = bench.service._sessions.values()
    assert session.attached


async def late_words_of_an_old_stream(bench: Bench) -> None:
    """A cancel that was under way on the old stream does not end the session for the new one."""
    old, session_id = await opened(bench)
    new = Hand()
    old.may_write.clear()
    old.writing.clear()
    old.send(ping=pb.Ping(sent_at_us=1))
    await old.writing.wait()
    old.send(cancel=pb.Cancel())
    bench.stream(new)
    new.send(open=resuming(session_id))
    await until(lambda: len(new.tokens) == 1)
    old.may_write.set()
    await until(lambda: old.status is not None)
    (session,) = bench.service._sessions.values()
    assert session.finish is None


async def write_that_fails_first(bench: Bench) -> None:
    """gRPC may fail a write before it cancels the stream: the device may still come back."""
    hand, session_id = await opened(bench)
    hand.write_error = Aborted("the connection is gone")
    hand.send(ping=pb.Ping(sent_at_us=1))
    (session,) = bench.service._sessions.values()
    await until(lambda: not session.attached)
    again = Hand()
    bench.stream(again)
    again.send(open=resuming(session_id))
    await until(lambda: len(again.tokens) == 1)
    assert again.tokens == [(START, WORDS[:1])]


async def device_asleep_for_hours(bench: Bench) -> None:
    """Times that outgrow their fields are told as the longest they can hold."""
    hand, _ = await opened(bench)
    (session,) = bench.service._sessions.values()
    session.echo.received_s -= 5000
    session.ready_since_s -= 5000
    session.work_since_s -= 5000
    session.token_requested = True
    bench.scheduler.wake()
    await until(lambda: len(hand.tokens) == 2)
    commit = hand.written[-1].commit
    assert (commit.hold_us, commit.queue_us) == (0xFFFFFFFF, 0xFFFFFFFF)


@pytest.mark.parametrize(
    "race",
    [
        replaced_behind_a_pong,
        replaced_while_opening,
        broken_while_opening,
        late_words_of_an_old_stream,
        write_that_fails_first,
        device_asleep_for_hours,
    ],
    ids=lambda race: race.__name__,
)
def test_race(race: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    async def run(scene: Callable[[Bench], Awaitable[None]]) -> None:
        bench = Bench()
        try:
            await scene(bench)
        finally:
            await bench.end()

    asyncio.run(run(race))
