"""If background work of a verifier fails, one session ends, or all of them go on elsewhere and the process ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from outrider.v1 import verifier_pb2 as pb

from cloud_verifier import server
from cloud_verifier.engines.base import Block, Choices, EngineDead, Memory, SequenceId
from cloud_verifier.observability.interceptor import Call
from cloud_verifier.observability.metrics import Metrics
from cloud_verifier.scheduling import engine_thread
from cloud_verifier.scheduling.engine_thread import EngineThread
from cloud_verifier.scheduling.scheduler import SchedulerSettings
from cloud_verifier.server import serve
from cloud_verifier.serving.address import Address, ServerError
from cloud_verifier.serving.open_request import Served
from cloud_verifier.supervision import Supervisor
from edge_client.client import EdgeClient, SamplingParams
from speculation.pace.base import PATIENCE_UNLIMITED_MS
from tests.harness import InProcessVerifier, LetterCodec
from tests.mock_engine import MockEngine, answer
from tests.service.raw import DEADLINE_S, PROMPT, SEED, Stream, opening, until

COUNT = 20
WORDS = answer(PROMPT, SEED, COUNT)
WAITING = opening(sampling=pb.SamplingParams(max_tokens=COUNT), patience_ms=PATIENCE_UNLIMITED_MS)


class Broken(MockEngine):
    """Raises in the method named, once `armed`: by a test, or after so many steps."""

    def __init__(self, method: str, error: BaseException, after_steps: int | None = None) -> None:
        super().__init__()
        self.armed = False
        self._after_steps = after_steps
        self._method, self._error = method, error

    def _may_fail(self, method: str) -> None:
        if self.armed and method == self._method:
            self.armed = False
            raise self._error

    @property
    def memory(self) -> Memory:
        self._may_fail("memory")
        return super().memory

    def open(self, tokens: Sequence[int] = (), scope: str = "") -> SequenceId:
        self._may_fail("open")
        return super().open(tokens, scope)

    def reserve(self, sequence: SequenceId, tokens: int, parents: Sequence[int] = ()) -> None:
        if tokens > 1 and self.length(sequence) >= len(PROMPT):
            self._may_fail("reserve for guesses")
        self._may_fail("reserve")
        super().reserve(sequence, tokens)

    def step(self, blocks: Sequence[Block]) -> list[Choices]:
        self.armed |= len(self.batch_sizes) == self._after_steps
        self._may_fail("step")
        return super().step(blocks)

    def truncate(self, sequence: SequenceId, length: int) -> None:
        self._may_fail("truncate")
        super().truncate(sequence, length)


def health(address: str) -> int:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S).status)


@pytest.mark.parametrize("method", ["reserve for guesses", "reserve", "truncate"])
def test_an_engine_that_fails_on_one_session_ends_that_one(method: str) -> None:
    engine = Broken(method, RuntimeError("told to fail"))
    with InProcessVerifier(engine) as verifier, Stream(verifier.address, WAITING) as struck:
        struck.opened()
        said = struck.tokens(1)
        known = len(PROMPT) + len(said)
        engine.armed = True
        struck.draft(known, WORDS[len(said) : len(said) + 4], known)
        assert struck.refusal()[:2] == ("INTERNAL", "ENGINE_FAILED")
        assert not engine.armed
        with Stream(verifier.address, opening(sampling=pb.SamplingParams(max_tokens=COUNT))) as bystander:
            bystander.opened()
            assert bystander.rest().tokens == WORDS
        assert health(verifier.address) == health_pb2.HealthCheckResponse.SERVING
        assert not verifier.supervisor.failed.is_set()


DEADLY = {
    "an engine that says so": ("step", EngineDead("told to die")),
    "an engine that says so when room is made": ("reserve", EngineDead("told to die")),
    "a fault in what concerns no session": ("memory", RuntimeError("told to fail")),
    "an exception that is none of Exception's": ("step", SystemExit(3)),
}


@pytest.mark.parametrize("case", DEADLY)
def test_a_verifier_that_can_step_no_more_hands_its_sessions_back(case: str) -> None:
    engine = Broken(*DEADLY[case])
    with InProcessVerifier(engine) as verifier, Stream(verifier.address, WAITING) as waiting:
        waiting.opened()
        said = waiting.tokens(1)
        assert health(verifier.address) == health_pb2.HealthCheckResponse.SERVING
        engine.armed = True
        with Stream(verifier.address, WAITING) as other:  # it steps, and that is the end of both
            assert other.refusal()[:2] == ("UNAVAILABLE", "DRAINING")
        rest, refusal = waiting.until_the_end()
        assert [*said, *rest] == WORDS[: 1 + len(rest)]
        assert refusal[:2] == ("UNAVAILABLE", "DRAINING")
        assert "continue_from" in refusal.sentence
        assert health(verifier.address) == health_pb2.HealthCheckResponse.NOT_SERVING
        with Stream(verifier.address, opening()) as late:
            assert late.refusal()[:2] == ("UNAVAILABLE", "DRAINING")
        assert "the scheduler of mock ended unexpectedly" in verifier.supervisor.failure


def test_a_device_goes_on_elsewhere_when_a_verifier_fails() -> None:
    engine = Broken("memory", RuntimeError("told to fail"), after_steps=COUNT // 2)
    with InProcessVerifier(engine) as failing, InProcessVerifier(MockEngine()) as other:
        with EdgeClient(f"{failing.address},{other.address}") as client:
            output = client.generate(PROMPT, SamplingParams(max_tokens=COUNT), seed=SEED)
        assert (list(output.token_ids), output.finish_reason) == (WORDS, "length")
        assert output.metrics.reconnects
        assert failing.supervisor.failed.is_set()


def test_the_process_ends_with_an_error() -> None:
    engine = Broken("memory", RuntimeError("told to fail"))
    ports: list[int] = []
    served = Served("mock", engine.info, LetterCodec())  # type: ignore[arg-type]

    def ask() -> str:
        until(lambda: bool(ports), "the verifier serves")
        engine.armed = True
        with Stream(f"127.0.0.1:{ports[0]}", WAITING) as stream:
            return stream.refusal().reason

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        with pytest.raises(ServerError, match=r"the scheduler of mock ended unexpectedly .*start this verifier again"):
            asyncio.run(serve(engine, served, Address(port=0), ports.append))
        assert asking.result(DEADLINE_S) == "DRAINING"


class Hanging(MockEngine):
    """Its step hangs, once `armed`, until the gate is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.armed, self.gate = False, threading.Event()

    def step(self, blocks: Sequence[Block]) -> list[Choices]:
        if self.armed:
            self.gate.wait()
        return super().step(blocks)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    monkeypatch.setattr(server, "STEPS_WATCHED_EVERY_S", 0.05)
    monkeypatch.setattr(engine_thread, "POSITION_TIMEOUT_S", 0.0)
    engine = Hanging()
    yield engine
    engine.gate.set()


QUICK = SchedulerSettings(step_timeout_s=0.3)


def test_a_verifier_whose_engine_hangs_hands_its_sessions_back(hanging: Hanging) -> None:
    with InProcessVerifier(hanging, scheduler=QUICK) as verifier, Stream(verifier.address, WAITING) as waiting:
        waiting.opened()
        said = waiting.tokens(1)
        hanging.armed = True
        with Stream(verifier.address, WAITING) as other:
            assert other.refusal()[:2] == ("UNAVAILABLE", "DRAINING")
        rest, refusal = waiting.until_the_end()
        assert [*said, *rest] == WORDS[: 1 + len(rest)]
        assert refusal[:2] == ("UNAVAILABLE", "DRAINING")
        assert health(verifier.address) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert "the engine of mock hangs: a step has taken more than 0 s" in verifier.supervisor.failure
        assert "in step" in verifier.supervisor.failure, "it says where"


def test_a_device_goes_on_elsewhere_when_an_engine_hangs(hanging: Hanging) -> None:
    hanging.armed = True
    with InProcessVerifier(hanging, scheduler=QUICK) as failing, InProcessVerifier(MockEngine()) as other:
        with EdgeClient(f"{failing.address},{other.address}") as client:
            output = client.generate(PROMPT, SamplingParams(max_tokens=COUNT), seed=SEED)
        assert list(output.token_ids) == WORDS
        assert output.metrics.reconnects


def test_an_engine_of_several_that_hangs_is_noticed_too(hanging: Hanging) -> None:
    others: Any = {"second": hanging}
    hanging.armed = True
    with InProcessVerifier(MockEngine(), scheduler=QUICK, others=others) as verifier:
        with Stream(verifier.address, opening(model="second")) as stream:
            assert stream.refusal()[:2] == ("UNAVAILABLE", "DRAINING")
        assert "the engine of second hangs" in verifier.supervisor.failure


def test_a_step_may_take_longer_the_more_it_evaluates() -> None:
    async def test() -> None:
        now, gate = [0.0], threading.Event()
        thread = EngineThread(300.0, lambda: now[0])
        assert not thread.trouble
        job = thread.run(gate.wait, 768)
        for seconds, hangs in ((300.1, False), (683.9, False), (684.1, True)):
            now[0] = seconds
            assert bool(thread.trouble) == hangs
        assert not thread.end(), "what hangs is not waited for"
        gate.set()
        assert await job
        assert not thread.trouble

    asyncio.run(test())


def test_a_process_whose_engine_hangs_ends() -> None:
    """A thread that can never be joined does not keep it."""
    program = """
import asyncio, threading
from cloud_verifier import server
from cloud_verifier.scheduling import engine_thread
from cloud_verifier.scheduling.scheduler import SchedulerSettings
from cloud_verifier.serving.address import Address
from cloud_verifier.serving.open_request import Served
from edge_client.client import EdgeClient
from tests.harness import LetterCodec
from tests.mock_engine import MockEngine
server.STEPS_WATCHED_EVERY_S, engine_thread.POSITION_TIMEOUT_S = 0.05, 0.0
engine = MockEngine()
engine.step = lambda blocks: threading.Event().wait()
def ask(port):
    client = EdgeClient(f"127.0.0.1:{port}")
    threading.Thread(target=client.generate, args=([2, 3],), daemon=True).start()
settings = SchedulerSettings(step_timeout_s=0.3)
asyncio.run(server.serve(engine, Served("mock", engine.info, LetterCodec()), Address(port=0), ask, settings))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE_S * 2, check=False
    )
    assert ended.returncode == 1
    assert "the engine of mock hangs" in ended.stderr
    assert "start this verifier again" in ended.stderr


def test_a_watch_that_ends_is_a_failure_and_one_that_is_stopped_is_none() -> None:
    async def returns() -> None: ...

    async def raises() -> None:
        raise RuntimeError("told to fail")

    async def cancelled() -> None:
        raise asyncio.CancelledError

    async def test() -> None:
        for work, why in ((returns, "it returned"), (raises, "RuntimeError at"), (cancelled, "it returned")):
            supervisor = Supervisor()
            supervisor.start("the watch", work())
            await asyncio.wait_for(supervisor.failed.wait(), DEADLINE_S)
            assert supervisor.failure.startswith(f"the watch ended unexpectedly ({why}")
            await supervisor.stop()
        supervisor = Supervisor()
        supervisor.start("the watch", asyncio.sleep(1e6))
        await asyncio.sleep(0)
        await supervisor.stop()
        assert not supervisor.failed.is_set()

    asyncio.run(test())


def test_a_server_of_metrics_that_ends_is_noticed() -> None:
    metrics = Metrics()
    _, exporter = metrics.serve("127.0.0.1", 0)
    with InProcessVerifier(MockEngine(), watchers=[metrics], metrics=metrics) as verifier:
        assert metrics.thread is not None
        assert metrics.thread.is_alive()
        exporter.shutdown()
        exporter.server_close()
        until(verifier.supervisor.failed.is_set, "the end of the thread is noticed")
        assert "the server of metrics ended unexpectedly" in verifier.supervisor.failure
        until(lambda: health(verifier.address) == health_pb2.HealthCheckResponse.NOT_SERVING, "it says so")


class FailingWatcher:
    """Raises over everything it is told."""

    def __init__(self) -> None:
        self.told = threading.Event()

    def committed(self, call: Call, tokens: int, gap_s: float) -> None:
        raise RuntimeError("told to fail")

    def drafted(self, call: Call, tokens: int, turnaround_s: float | None) -> None:
        raise RuntimeError("told to fail")

    def ended(self, call: Call) -> None:
        self.told.set()
        raise RuntimeError("told to fail")


def test_an_answer_does_not_depend_on_who_watches_it() -> None:
    watcher: Any = FailingWatcher()
    with InProcessVerifier(MockEngine(), watchers=[watcher]) as verifier, EdgeClient(verifier.address) as client:
        assert list(client.generate(PROMPT, SamplingParams(max_tokens=COUNT), seed=SEED).token_ids) == WORDS
        assert watcher.told.wait(DEADLINE_S)
