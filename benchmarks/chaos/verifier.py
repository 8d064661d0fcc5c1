"""A verifier to break: the product's own server, with a target that fails when it is told to.

Parent and child speak JSON lines, as in `netlab.link_process`. What the child says unasked is about a message at which
it waits: ``{"reached": true}``; it goes on when told to.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from outrider.v1 import verifier_pb2 as pb

from cloud_verifier.engines.base import Block, Choices, SequenceId, TargetEngine
from cloud_verifier.engines.paced import PacedEngine
from cloud_verifier.server import Running, running
from cloud_verifier.serving.address import Address
from cloud_verifier.serving.open_request import Served
from cloud_verifier.serving.service import ServiceSettings, VerifierService

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo" / "target"
STEP_MS = 8.0  # or else answers are over before anything can befall them
PLACES, CONTEXT_LIMIT = 32, 512
LEASE_S, DRAIN_S = 2.0, 0.15
HOUR_S = 3600.0


def say(message: dict[str, Any]) -> None:
    """A line to the parent."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


class Breaking:
    """Faults of an engine, done to one of any kind."""

    def __init__(self, engine: TargetEngine) -> None:
        self._step = engine.step
        engine.step = self.step  # type: ignore[method-assign]
        self.no_memory = 0  # steps to come that find none
        self.wanted = 0  # sessions whose input is to be one that the engine fails on
        self._struck: set[SequenceId] = set()

    def step(self, blocks: Sequence[Block]) -> list[Choices]:
        """As the engine's."""
        if self.no_memory:
            self.no_memory -= 1
            raise MemoryError("told to find no memory")
        alone = blocks[0].sequence
        if self.wanted:
            self.wanted -= 1
            self._struck.add(alone)
        if any(block.sequence in self._struck for block in blocks):
            if len(blocks) == 1:  # it is found out now; its number may be another's later
                self._struck.discard(alone)
            raise RuntimeError("told to fail on this input")
        return self._step(blocks)


class Boundary:
    """Waits at a message of a kind, so that the link can be cut exactly there."""

    def __init__(self) -> None:
        self.sought: tuple[str, str] | None = None
        self.left = 0
        self.go_on = asyncio.Event()

    async def at(self, moment: str, message: Any) -> None:
        """A message is at this moment of its way."""
        kind = message.WhichOneof("message") if hasattr(message, "WhichOneof") else None
        if (moment, kind) != self.sought:
            return
        self.left -= 1
        if self.left == 0:
            self.sought = None
            self.go_on.clear()
            say({"reached": True})
            await self.go_on.wait()

    def context(self, context: Any) -> Any:
        """A stream's context that stops there."""
        return _Context(context, self)


class _Context:
    def __init__(self, context: Any, boundary: Boundary) -> None:
        self._context, self._boundary = context, boundary

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        message = await self._context.read()
        await self._boundary.at("read", message)
        return message

    async def write(self, response: pb.GenerateResponse) -> None:
        await self._boundary.at("unwritten", response)
        await self._context.write(response)
        await self._boundary.at("written", response)


def _target(name: str) -> tuple[TargetEngine, Any]:
    if name == "mock":
        from tests.harness import LetterCodec
        from tests.mock_engine import MockEngine

        return MockEngine(max_sequences=PLACES, context_limit=CONTEXT_LIMIT), LetterCodec()
    from cloud_verifier.engines.torch_engine import load
    from cloud_verifier.serving.codec import Codec

    return load(str(DEMO), max_sequences=PLACES, threads=1), Codec(str(DEMO))


def _status(verifier: Running) -> dict[str, int]:
    """What is left of sessions."""
    ours = [task for task in asyncio.all_tasks() if "SessionStream" in repr(task.get_coro())]
    return {
        "sessions": verifier.service.sessions,
        "running": verifier.scheduler.running,
        "places_taken": PLACES - verifier.scheduler.room,
        "stream_tasks": len(ours),
    }


async def _serve(port: int, target: str) -> None:
    engine, codec = _target(target)
    breaking, boundary = Breaking(engine), Boundary()
    generate = VerifierService.Generate

    async def stopping(service: VerifierService, requests: Any, context: Any) -> None:
        await generate(service, requests, boundary.context(context))

    setattr(VerifierService, "Generate", stopping)  # noqa: B010 - which is no business of the type checker's
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    served = Served(target, engine.info, codec)
    paced = PacedEngine(engine, STEP_MS)
    async with running(paced, served, Address(port=port), None, ServiceSettings(lease_s=LEASE_S)) as verifier:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        obeying = asyncio.create_task(_obey(lines, verifier, breaking, boundary))
        say({"port": verifier.port})
        await stop.wait()
        boundary.sought = None
        boundary.go_on.set()
        await verifier.draining.drain(DRAIN_S)
        obeying.cancel()


async def _obey(lines: asyncio.StreamReader, verifier: Running, breaking: Breaking, boundary: Boundary) -> None:
    wall_clock, log_file, ahead_s = time.time, os.dup(2), 0.0

    def seek(wish: tuple[str, str, int]) -> None:
        *sought, boundary.left = wish
        boundary.sought = (str(sought[0]), str(sought[1]))

    def jump(by_s: float) -> None:
        nonlocal ahead_s
        ahead_s += by_s
        time.time = lambda: wall_clock() + ahead_s

    def fill_disk(full: bool) -> None:
        file = os.open("/dev/full", os.O_WRONLY) if full else os.dup(log_file)
        os.dup2(file, 2)
        os.close(file)

    def go_on(_: object) -> None:
        boundary.sought = None
        boundary.go_on.set()

    verbs: dict[str, Callable[[Any], Any]] = {
        "status": lambda _: _status(verifier),
        "sessions": lambda _: [(s.session_id, s.prompt_length) for s in verifier.service._sessions.values()],
        "memory": lambda steps: setattr(breaking, "no_memory", steps),
        "exception": lambda sessions: setattr(breaking, "wanted", sessions),
        "clock": jump,
        "disk_full": fill_disk,
        "seek": seek,
        "go_on": go_on,
    }
    while line := await lines.readline():
        verb, argument = json.loads(line)
        say({"ok": verbs[verb](argument)})


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    asyncio.run(_serve(int(sys.argv[1]), sys.argv[2]))
