"""After everything that can happen to sessions, nothing of them is left."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import weakref
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from outrider.v1 import verifier_pb2 as pb

from cloud_verifier.scheduling.session import Session
from cloud_verifier.security.authentication import Authentication
from cloud_verifier.security.principals import Quota
from cloud_verifier.serving.service import ServiceSettings, VerifierService
from edge_client.client import AsyncEdgeClient, EdgeClient, SamplingParams
from edge_client.errors import SessionError
from speculation.pace.base import PATIENCE_UNLIMITED_MS
from tests.harness import InProcessVerifier, MockDrafter, queue_of
from tests.mock_engine import MockEngine, answer
from tests.service.links import Road
from tests.service.raw import PROMPT, SEED, Stream, opening, until

WORDS = answer(PROMPT, SEED, 30)
START = len(PROMPT)
WAITING = opening(sampling=pb.SamplingParams(max_tokens=30), patience_ms=PATIENCE_UNLIMITED_MS)
HURRIED = opening(sampling=pb.SamplingParams(max_tokens=30))


def completed(address: str) -> None:
    with Stream(address, HURRIED) as stream:
        stream.opened()
        assert stream.rest().tokens == WORDS


def cut_before_opened(address: str) -> None:
    Stream(address, WAITING).cut()


def cut_at_once(address: str) -> None:
    with Stream(address, WAITING) as stream:
        stream.opened()


def cut_while_written(address: str) -> None:
    with Stream(address, HURRIED) as stream:
        stream.opened()
        stream.tokens(1)


def cancelled(address: str) -> None:
    with Stream(address, WAITING) as stream:
        stream.opened()
        stream.tokens(1)
        stream.send(cancel=pb.Cancel())
        assert stream.rest().finished.reason == pb.FINISH_REASON_CANCELLED


def resumed(address: str) -> None:
    with Stream(address, WAITING) as stream, Stream(address) as again:
        session_id = stream.opened().session_id
        stream.tokens(1)
        again.send(open=opening(resume=pb.Resume(session_id=session_id, known_length=START)))
        again.opened()
        again.half_close()
        assert again.rest().tokens == WORDS


def resumed_and_cut(address: str) -> None:
    with Stream(address, WAITING) as stream, Stream(address) as again:
        session_id = stream.opened().session_id
        stream.cut()
        again.send(open=opening(resume=pb.Resume(session_id=session_id, known_length=START)))
        with contextlib.suppress(grpc.RpcError):  # its lease may have ended
            again.opened()


def failed(address: str) -> None:
    with Stream(address, opening(prompt_ids=pb.TokenIds(ids=[0, 5]))) as stream:
        stream.opened()
        assert stream.refusal().reason == "ENGINE_FAILED"


def misbehaved(address: str) -> None:
    with Stream(address, WAITING) as stream:
        stream.opened()
        stream.send()
        assert stream.refusal().reason == "EMPTY_MESSAGE"


def refused(address: str) -> None:
    with Stream(address, opening(model="other")) as stream:
        assert stream.refusal().reason == "MODEL"


def continued_when_complete(address: str) -> None:
    with Stream(address, opening(sampling=pb.SamplingParams(max_tokens=30), continue_from=WORDS)) as stream:
        stream.opened()
        assert stream.rest().tokens == []


LIVES: list[Callable[[str], None]] = [
    completed,
    cut_before_opened,
    cut_at_once,
    cut_while_written,
    cancelled,
    resumed,
    resumed_and_cut,
    failed,
    misbehaved,
    refused,
    continued_when_complete,
]


def tasks_of(verifier: InProcessVerifier) -> int:
    async def count() -> int:
        return len(asyncio.all_tasks())

    return asyncio.run_coroutine_threadsafe(count(), verifier.loop).result(10)


def test_two_hundred_sessions_leave_nothing_behind() -> None:
    engine = MockEngine(max_sequences=64)
    engine.poison = 0
    lives = random.Random(4).choices(LIVES, k=200 - len(LIVES)) + LIVES
    with InProcessVerifier(engine, service=ServiceSettings(lease_s=0.05)) as verifier:
        completed(verifier.address)
        before = tasks_of(verifier)
        for life in lives:
            life(verifier.address)
        until(lambda: verifier.service.sessions == 0, "all sessions are forgotten")
        until(lambda: not engine.sequences, "all places are free")
        until(lambda: tasks_of(verifier) <= before, "all tasks have ended")
        assert verifier.scheduler.running == 0
        assert verifier.scheduler.room
        completed(verifier.address)


def test_a_session_that_gave_way_is_gone_though_its_lease_is_not() -> None:
    """Or else whoever opens and leaves, opens and leaves, fills the memory, whatever the most sessions are."""
    quota = Authentication(default=Quota(max_sessions=1))
    with InProcessVerifier(MockEngine(), service=ServiceSettings(lease_s=3600), authentication=quota) as verifier:
        seen: list[weakref.ref[Session]] = []
        for number in range(6):
            with Stream(verifier.address, WAITING) as stream:
                session_id = stream.opened().session_id
                seen.append(weakref.ref(verifier.service._sessions[session_id]))
                if number % 2:
                    stream.cut()
                    until(lambda: verifier.service.streams == 0, "the cut is noticed")
                    resume = opening(resume=pb.Resume(session_id=session_id, known_length=START))
                    with Stream(verifier.address, resume) as again:
                        again.opened()
            until(lambda: verifier.service.streams == 0, "the cut is noticed")
        until(lambda: sum(session() is not None for session in seen) == 1, "five of six are gone")
        assert len(verifier.service._leases) == verifier.service.sessions == 1


class Reads:
    """Reads of all streams that a verifier serves: how many are under way, and how many were given up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.under_way = self.given_up = self.all = 0
        generate, reads = VerifierService.Generate, self

        class Context:
            def __init__(self, context: Any) -> None:
                self._context = context

            def __getattr__(self, name: str) -> Any:
                return getattr(self._context, name)

            async def read(self) -> Any:
                reads.under_way += 1
                reads.all += 1
                try:
                    return await self._context.read()
                except asyncio.CancelledError:
                    reads.given_up += 1
                    raise
                finally:
                    reads.under_way -= 1

        async def counted(service: VerifierService, requests: Any, context: Any) -> None:
            await generate(service, requests, Context(context))  # type: ignore[arg-type]

        monkeypatch.setattr(VerifierService, "Generate", counted)


def test_no_read_is_given_up_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """For gRPC loses memory by each that is; see `cloud_verifier.serving.stream_reader`."""
    reads = Reads(monkeypatch)
    engine = MockEngine(max_sequences=64)
    engine.poison = 0
    settings = ServiceSettings(lease_s=0.05, open_timeout_s=0.1)
    with InProcessVerifier(engine, service=settings) as verifier:
        for life in (*LIVES, never_opened):
            life(verifier.address)
        until(lambda: reads.under_way == 0, "every read ends with its stream")
    assert reads.all > len(LIVES)
    assert reads.given_up == 0


def never_opened(address: str) -> None:
    with Stream(address) as stream:
        assert stream.refusal().reason == "OPEN_TIMEOUT"


def test_a_session_whose_deadline_has_passed_is_not_kept() -> None:
    engine = MockEngine()
    with InProcessVerifier(engine, service=ServiceSettings(lease_s=3600)) as verifier:
        with Stream(verifier.address, WAITING, deadline_s=0.5) as stream:
            stream.opened()
            with pytest.raises(grpc.RpcError) as ended:
                stream.rest()
        assert ended.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        until(lambda: verifier.service.sessions == 0, "the session is forgotten")
        until(lambda: not engine.sequences, "its place is free")


def test_a_verifier_that_stops_takes_its_sessions_along() -> None:
    """Attached, detached and running: nothing is left of them in an engine that outlives its verifier."""
    engine = MockEngine(max_sequences=64)
    with InProcessVerifier(engine, service=ServiceSettings(lease_s=3600)) as verifier:
        streams = [Stream(verifier.address, request) for request in (WAITING, WAITING, HURRIED)]
        for stream in streams:
            stream.opened()
        streams[1].cut()
        until(lambda: sum(s.attached for s in verifier.service._sessions.values()) < 3, "the cut is noticed")
    assert not engine.sequences
    for stream in streams:
        stream.cut()


# -- the device --------------------------------------------------------------------------------------------------------

PARAMS = SamplingParams(max_tokens=30)


def ours() -> int:
    """Threads of clients: rides and links."""
    return sum(thread.name.startswith("outrider-") for thread in threading.enumerate())


def link_tasks(client: EdgeClient) -> int:
    async def count() -> int:
        return len(asyncio.all_tasks())

    return int(client._channel.call(count()).result(10))


def test_a_client_keeps_no_threads_and_no_tasks() -> None:
    until(lambda: ours() == 0, "earlier clients are gone")
    lease = ServiceSettings(lease_s=0.2)  # for sessions that were cut when they were as good as finished
    with InProcessVerifier(MockEngine(), service=lease) as verifier, Road(verifier.address) as road:
        with EdgeClient(road.address, MockDrafter(3, SEED, 0.8)) as client:
            client.generate(PROMPT, PARAMS, seed=SEED)
            until(lambda: ours() == 1, "the first ride ends")
            before = link_tasks(client)
            for turn in range(40):
                answering = client.stream(PROMPT, PARAMS, seed=SEED)
                if turn % 4 == 0:
                    next(answering)
                    answering.close()
                elif turn % 4 == 1:
                    tokens = list(next(answering).token_ids)
                    road.cut()
                    assert [*tokens, *(token for chunk in answering for token in chunk.token_ids)] == WORDS
                elif turn % 4 == 2:
                    with pytest.raises(SessionError):
                        client.generate([99], PARAMS)
                else:
                    output = client.generate(PROMPT, PARAMS, seed=SEED)
                    assert output.token_ids == tuple(WORDS)
                    assert output.metrics.reconnects == 0, "its last draft came too late, which is no broken stream"
            until(lambda: ours() == 1, "all rides end")
            until(lambda: link_tasks(client) <= before, "all tasks end")
            assert not queue_of(client).taken
        until(lambda: verifier.service.sessions == 0, "the verifier has forgotten all")
    assert ours() == 0


def test_clients_come_and_go() -> None:
    async def come_and_go(address: str) -> None:
        async with AsyncEdgeClient(address, MockDrafter(3, SEED, 0.8)) as client:
            assert (await client.generate(PROMPT, PARAMS, seed=SEED)).token_ids == tuple(WORDS)

    with InProcessVerifier(MockEngine()) as verifier:
        for _ in range(10):
            asyncio.run(come_and_go(verifier.address))
            EdgeClient(verifier.address).close()
    assert ours() == 0
