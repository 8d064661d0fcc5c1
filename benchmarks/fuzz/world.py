"""A verifier with a mock target, the devices of a case, a bystander, and what must hold after every case."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import grpc
from outrider.v1 import verifier_pb2 as pb

from benchmarks.fuzz.callers import BYSTANDER, QUOTAS, Callers
from benchmarks.fuzz.device import Device
from benchmarks.fuzz.operations import Draft, HalfClose, Identify, Listen, Operation, Resume, Revoke, Send, Wait
from benchmarks.fuzz.wires import DirectWire, Handler, SocketWire, Wire
from cloud_verifier.scheduling.scheduler import Scheduler
from cloud_verifier.server import running
from cloud_verifier.serving.address import Address
from cloud_verifier.serving.admission import AdmissionSettings
from cloud_verifier.serving.open_request import Served
from cloud_verifier.serving.service import ServiceSettings, VerifierService
from speculation.pace.base import PATIENCE_UNLIMITED_MS
from tests.harness import LetterCodec
from tests.mock_engine import MockEngine

CONTEXT_LIMIT, PLACES, QUEUE = 192, 4, 1
LEASE_S = 3600.0
PATIENCE_TURNS = 20_000  # until what does not happen is a fault
TURN_S = 0.0005  # of an event loop that shares its cores with gRPC's threads


class AnyLetterCodec(LetterCodec):
    """Has a letter for every byte."""

    def encode_text(self, text: str) -> list[int]:
        return [2 + byte % len(self.LETTERS) for byte in text.encode()]


class WarpedLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock can be put forward: an hour's lease ends at once."""

    ahead_s = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_s


class _Inline(Executor):
    """Does work where it is asked for, so that a case runs the same way every time."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class _InlineSteps:
    """In the place of the engine's thread: a step has ended when it is asked for."""

    trouble = ""

    def run(self, work: Callable[[], Any], _positions: int) -> asyncio.Future[Any]:
        return asyncio.wrap_future(_Inline().submit(work))

    def end(self) -> bool:
        return True


class _Listener(logging.Handler):
    """A verifier that warns, warns of a fault: nothing that a device sends is worth one."""

    def __init__(self, complain: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._complain = complain

    def emit(self, record: logging.LogRecord) -> None:
        error = f": {record.exc_info[1]!r}" if record.exc_info else ""
        self._complain(f"logged {record.getMessage()}{error}")


class World:
    """Runs cases; use `world`."""

    def __init__(
        self,
        engine: MockEngine,
        served: Served,
        service: VerifierService,
        scheduler: Scheduler,
        callers: Callers | None,
    ) -> None:
        self._callers = callers
        self._generate: Handler = service.Generate
        if callers is not None:
            self._generate = callers.authentication._guarded(service.Generate)
            # Quotas of tokens go by the clock that cases can put forward.
            service._admission._clock = asyncio.get_running_loop().time
        self._names: dict[int, str] = {}  # callers, by stream
        self.problems: list[str] = []
        self.messages = 0
        self.refusals: dict[str, int] = {}
        self._engine, self._served, self._service, self._scheduler = engine, served, service, scheduler
        self.port = 0  # 0: cases skip gRPC
        self._channel: grpc.aio.Channel | None = None
        self._wires: list[Wire] = []
        self._bystander: Wire | None = None
        self._idle_tasks = sys.maxsize

    def complain(self, problem: str) -> None:
        """Something that must not be."""
        self.problems.append(problem)

    async def settle(self) -> None:
        """Learn how many tasks there are between cases: a server has some of its own only after its first call."""
        await self.play([Send(0, pb.GenerateRequest().SerializeToString())])
        self._idle_tasks = len(asyncio.all_tasks())

    async def play(self, case: Sequence[Operation]) -> list[str]:
        """Run a case to its end; returns what was wrong."""
        self.problems.clear()
        self._names.clear()
        await self._seat_bystander()
        with self._connected():
            await self._run(case)
            for wire in self._wires:
                wire.listen(True)
            await self._turn(50)
            for wire in self._wires:
                wire.cut()
            await self._until(lambda: all(wire.over for wire in self._wires), "all streams end")
        if self._channel is not None:
            await self._channel.close()
        await self._until(self._at_rest, "nothing of the case is left")
        if not self._at_rest():
            self.complain(f"left: {self._left()}, with {self._idle_tasks} tasks between cases")
        await self._advance_bystander()
        for wire in self._wires:
            if reason := wire.device.refusal:
                self.refusals[reason] = self.refusals.get(reason, 0) + 1
        self._wires = []
        return list(self.problems)

    def _at_rest(self) -> bool:
        """Whether only the bystander is left, with every lease over: a stream may have been opened late."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, WarpedLoop)
        loop.ahead_s += LEASE_S + 1
        left = self._left()
        return left.pop("tasks") <= self._idle_tasks and set(left.values()) == {1}

    def _left(self) -> dict[str, int]:
        return {
            "streams": self._service.streams,
            "sessions": self._service.sessions,
            "running": self._scheduler.running,
            "sequences": len(self._engine.sequences),
            "tasks": len(asyncio.all_tasks()),
        }

    # -- a case -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _connected(self) -> Any:
        if self.port:
            self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", [("grpc.use_local_subchannel_pool", 1)])
        yield

    def _wire(self, stream: int) -> Wire:
        device = self._device(self._names.get(stream, "ann"))
        if self._channel is not None:
            return SocketWire(self._channel, device, self.complain)
        return DirectWire(self._generate, device, self.complain)

    def _device(self, name: str) -> Device:
        return Device(self._served, self.complain, self._callers.named(name) if self._callers is not None else None)

    def _revoke(self, name: str) -> None:
        if self._callers is not None:
            self._callers.revoke(name)
            self._service.end_sessions(self._callers.authentication.objections())

    def _check_quotas(self) -> None:
        for name, quota in QUOTAS.items():
            held = sum(session.owner == name for session in self._service._sessions.values())
            if quota.max_sessions is not None and held > quota.max_sessions:
                self.complain(f"{name} has {held} sessions, and may have {quota.max_sessions}")

    async def _run(self, case: Sequence[Operation]) -> None:
        current: dict[int, Wire] = {}
        for operation in case:
            if isinstance(operation, Wait):
                await self._turn(operation.turns)
                self._check_quotas()
                continue
            if isinstance(operation, Revoke):
                self._revoke(operation.caller)
                continue
            if isinstance(operation, Identify):
                self._names[operation.stream] = operation.caller
                continue
            wire = current.get(operation.stream)
            if isinstance(operation, Send | Resume | Draft):
                if wire is None or isinstance(operation, Resume):  # whose old stream may still stand
                    wire = current[operation.stream] = self._wire(operation.stream)
                    self._wires.append(wire)
                if not wire.over:
                    self.messages += 1
                    wire.send(self._message(operation, wire.device, current))
            elif wire is None:
                continue
            elif isinstance(operation, HalfClose):
                wire.send(None)
            elif isinstance(operation, Listen):
                wire.listen(operation.listens)
            else:
                wire.cut()

    def _message(self, operation: Send | Resume | Draft, device: Device, current: dict[int, Wire]) -> bytes:
        if isinstance(operation, Send):
            return operation.message
        if isinstance(operation, Draft):
            return _draft(operation, device)
        # The stream that it names may be a resumed one itself, or the very one that it replaces.
        opened = [wire.device for wire in (current.get(operation.of), *self._wires) if wire and wire.device.session_id]
        device.origin = opened[0] if opened else None
        session_id, known = (opened[0].session_id, opened[0].known) if opened else ("", 0)
        resume = pb.Resume(session_id=session_id, known_length=_uint32(known + operation.known))
        return pb.GenerateRequest(open=pb.Open(protocol_version=1, resume=resume)).SerializeToString()

    async def _turn(self, turns: int) -> None:
        if self.port:  # gRPC's own threads take their time
            await asyncio.sleep(turns * TURN_S)
        else:
            for _ in range(turns):
                await asyncio.sleep(0)

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        for _ in range(PATIENCE_TURNS):
            if condition():
                return
            await self._turn(1)
        self.complain(f"waited in vain until {what}")

    # -- the bystander ------------------------------------------------------------------------------------------------

    async def _seat_bystander(self) -> None:
        if self._bystander is not None and not self._bystander.over:
            return
        prompt = pb.TokenIds(ids=(7, 8, 9))
        opened = pb.Open(protocol_version=1, prompt_ids=prompt, seed=77, patience_ms=PATIENCE_UNLIMITED_MS)
        opened.sampling.ignore_eos = True
        self._bystander = DirectWire(self._generate, self._device(BYSTANDER), self.complain)
        self._bystander.send(pb.GenerateRequest(open=opened).SerializeToString())
        device = self._bystander.device
        await self._until(lambda: device.known > 3, "the bystander hears its first word")

    async def _advance_bystander(self) -> None:
        assert self._bystander is not None
        device = self._bystander.device
        known = device.known
        draft = pb.Draft(start=known, known_length=known)
        self._bystander.send(pb.GenerateRequest(draft=draft).SerializeToString())
        await self._until(lambda: device.known > known, "the bystander hears another word")
        if device.known == CONTEXT_LIMIT:
            wire = self._bystander
            await self._until(lambda: wire.over, "the bystander's answer ends")


def _draft(operation: Draft, device: Device) -> bytes:
    draft = pb.Draft.FromString(operation.more)
    draft.start = _uint32(device.known + operation.start)
    draft.known_length = _uint32(device.known + operation.known)
    if device.story is not None and draft.start < CONTEXT_LIMIT:
        draft.tokens.extend(device.story.reads(draft.start, draft.start + operation.right))
    draft.tokens.extend(operation.wrong)
    return pb.GenerateRequest(draft=draft).SerializeToString()


def _uint32(value: int) -> int:
    return min(max(0, value), 2**32 - 1)


@contextlib.asynccontextmanager
async def world(*, sockets: bool, keys: bool = False) -> AsyncIterator[World]:
    """A fresh verifier. sockets: whether cases reach it by gRPC; without, they also run the same way every time. keys:
    whether it asks for them, and has quotas.

    It must be entered on a WarpedLoop, which it uses alone.
    """
    engine = MockEngine(max_sequences=PLACES, context_limit=CONTEXT_LIMIT, eos_every=0)
    codec: Any = AnyLetterCodec()
    served = Served("mock", engine.info, codec)
    settings = ServiceSettings(lease_s=LEASE_S, admission=AdmissionSettings(max_queue=QUEUE))
    async with contextlib.AsyncExitStack() as stack:
        callers = Callers(Path(stack.enter_context(tempfile.TemporaryDirectory()))) if keys else None
        if sockets:
            authentication = callers.authentication if callers is not None else None
            verifier = await stack.enter_async_context(
                running(engine, served, Address(port=0), None, settings, authentication)
            )
            subject = World(engine, served, verifier.service, verifier.scheduler, callers)
            subject.port = verifier.port
        else:
            scheduler = Scheduler(engine)
            service = VerifierService(served, scheduler, settings)
            scheduler._thread = _InlineSteps()  # type: ignore[assignment]
            for queue in service._queues.values():
                queue._thread = _Inline()  # type: ignore[assignment]
            subject = World(engine, served, service, scheduler, callers)
            stepping = asyncio.create_task(scheduler.run())
            stack.push_async_callback(_end, stepping)
        listener = _Listener(subject.complain)
        logging.getLogger().addHandler(listener)
        stack.callback(logging.getLogger().removeHandler, listener)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: subject.complain(f"unhandled: {context}"))
        await subject.settle()
        yield subject
        if subject._bystander is not None:
            subject._bystander.cut()
            await subject._turn(10)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
