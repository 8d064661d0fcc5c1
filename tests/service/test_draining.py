"""A verifier that leaves: who may go on, who is refused, and who is handed back with nothing lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from outrider.v1 import verifier_pb2 as pb

from cloud_verifier.engines.base import Block, Choices
from cloud_verifier.scheduling.session import Session
from cloud_verifier.serving.address import Address
from edge_client.client import EdgeClient, SamplingParams
from edge_client.drafters.base import Candidates
from speculation.pace.base import PATIENCE_UNLIMITED_MS, FixedTree
from tests.harness import InProcessVerifier, MockDrafter
from tests.mock_engine import MockEngine, answer, next_token
from tests.service.engines import GatedEngine
from tests.service.raw import DEADLINE_S, PROMPT, SEED, Stream, opening, until

WORDS = answer(PROMPT, SEED, 12)
WAITING = opening(sampling=pb.SamplingParams(max_tokens=12), patience_ms=PATIENCE_UNLIMITED_MS)


def drain(verifier: InProcessVerifier, timeout_s: float = DEADLINE_S) -> Future[Any]:
    """Begin to drain; returns once new sessions are refused."""
    done = asyncio.run_coroutine_threadsafe(verifier.draining.drain(timeout_s), verifier.loop)

    def refuses() -> bool:
        with Stream(verifier.address, opening()) as stream:
            try:
                stream.rest()
            except grpc.RpcError:
                return True
            return False

    until(refuses, "the verifier drains")
    return done


def test_running_sessions_end_as_ever_while_new_ones_are_refused() -> None:
    with InProcessVerifier(MockEngine()) as verifier, Stream(verifier.address, WAITING) as running:
        running.opened()
        said = running.tokens(1)
        done = drain(verifier)
        with grpc.insecure_channel(verifier.address) as channel:
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
            assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
        with Stream(verifier.address, opening()) as late:
            assert late.refusal()[:2] == ("UNAVAILABLE", "DRAINING")
        assert not done.done()
        running.half_close()
        assert [*said, *running.rest().tokens] == WORDS
        done.result(timeout=DEADLINE_S)


def test_a_session_may_be_resumed_on_a_draining_verifier() -> None:
    with (
        InProcessVerifier(MockEngine()) as verifier,
        Stream(verifier.address, WAITING) as other,
        Stream(verifier.address, WAITING) as stream,
    ):
        other.opened()  # so that there is something to drain while the first one is away
        session_id = stream.opened().session_id
        said = stream.tokens(1)
        drain(verifier)
        stream.cut()
        resume = pb.Resume(session_id=session_id, known_length=len(PROMPT) + len(said))
        with Stream(verifier.address, opening(resume=resume)) as resumed:
            resumed.half_close()
            resumed.opened()
            assert [*said, *resumed.rest().tokens] == WORDS


@pytest.mark.parametrize("why", ["time is up", "a second signal"])
def test_a_session_that_takes_too_long_is_handed_back(why: str) -> None:
    with InProcessVerifier(MockEngine()) as verifier, Stream(verifier.address, WAITING) as running:
        running.opened()
        said = running.tokens(1)
        if why == "time is up":
            asyncio.run_coroutine_threadsafe(verifier.draining.drain(0.0), verifier.loop).result(DEADLINE_S)
        else:
            done = drain(verifier)
            verifier.loop.call_soon_threadsafe(verifier.draining.hurry.set)
            done.result(DEADLINE_S)
        refusal = running.refusal()
        assert refusal[:2] == ("UNAVAILABLE", "DRAINING")
        assert "continue_from" in refusal.sentence
        assert verifier.service.sessions == 0
    going_on = opening(sampling=pb.SamplingParams(max_tokens=12), continue_from=said)
    with InProcessVerifier(MockEngine()) as next_one, Stream(next_one.address, going_on) as stream:
        stream.opened()
        assert [*said, *stream.rest().tokens] == WORDS


def test_a_verifier_without_streams_leaves_at_once() -> None:
    with InProcessVerifier(MockEngine()) as verifier:
        asyncio.run_coroutine_threadsafe(verifier.draining.drain(DEADLINE_S), verifier.loop).result(DEADLINE_S / 2)


@pytest.mark.parametrize("shared", [False, True], ids=["two addresses", "one port"])
def test_a_device_goes_on_with_another_verifier(shared: bool) -> None:
    """The first steps only when told to, so that its session is in mid-answer when it leaves."""
    engine, successor = GatedEngine(), MockEngine()
    with InProcessVerifier(engine, address=Address(port=0, reuse_port=shared)) as leaving:
        port = int(leaving.address.rpartition(":")[2])
        where = Address(port=port, reuse_port=True) if shared else Address(port=0)
        chunks: list[Any] = []
        addresses: list[str] = [leaving.address]
        begun = threading.Event()

        def ask() -> None:
            with EdgeClient(",".join(addresses)) as client:
                for chunk in client.stream(PROMPT, SamplingParams(max_tokens=12), seed=SEED):
                    chunks.append(chunk)
                    begun.set()

        if not shared:
            following = InProcessVerifier(successor, address=where).__enter__()
            addresses.append(following.address)
        asking = threading.Thread(target=ask)
        asking.start()
        engine.allow(4)
        assert begun.wait(DEADLINE_S)
        until(lambda: len(engine.batch_sizes) == 4, "the first verifier has done what it may")
        if shared:
            following = InProcessVerifier(successor, address=where).__enter__()
        asyncio.run_coroutine_threadsafe(leaving.draining.drain(0.0), leaving.loop).result(DEADLINE_S)
        engine.allow(1)  # the step that it is in
        asking.join(DEADLINE_S)
        following.__exit__(None, None, None)
    output = chunks[-1].output
    assert output is not None
    assert list(output.token_ids) == WORDS
    assert successor.batch_sizes, "the answer ended elsewhere"


class TwoGuesses(MockDrafter):
    """The right token among two, as often first as second."""

    def candidates(self) -> Candidates:
        right = next_token(self._tokens, self._target_seed)
        ids = [right ^ 1, right] if len(self._tokens) % 2 else [right, right ^ 1]
        return Candidates(np.array(ids), np.array([-0.5, -1.0]))


class PatientTree(FixedTree):
    patience_ms = PATIENCE_UNLIMITED_MS


class CountingEngine(GatedEngine):
    """forks: steps whose guesses branch."""

    forks = 0

    def step(self, blocks: Sequence[Block]) -> list[Choices]:
        self.forks += any(block.parents for block in blocks)
        return super().step(blocks)


def test_an_answer_moves_between_verifiers_that_take_trees_and_one_that_takes_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In mid-answer, with guesses drawn and sent."""
    came: set[tuple[bool, bool]] = set()  # at a verifier that takes trees, with branches
    draft = Session.draft

    def noted(session: Session, *of: Any, parents: Sequence[int] = (), **named: Any) -> None:
        came.add((session.max_nodes > 0, len(parents) > 0))
        draft(session, *of, parents=parents, **named)

    monkeypatch.setattr(Session, "draft", noted)
    tokens, moves = 60, 5
    engines = [CountingEngine(trees=trees) for trees in (True, False, True)]
    verifiers = [InProcessVerifier(engine).__enter__() for engine in engines]
    chunks: list[Any] = []

    def stepped(engine: CountingEngine, steps: int) -> bool:
        return len(engine.batch_sizes) == steps

    def ask() -> None:
        with EdgeClient(
            ",".join(verifier.address for verifier in verifiers),
            TwoGuesses(1, SEED, 1.0),
            pace=lambda: PatientTree(2, max_depth=3),
        ) as client:
            params = SamplingParams(temperature=0.0, max_tokens=tokens)
            chunks.extend(client.stream(PROMPT, params, seed=SEED))

    asking = threading.Thread(target=ask)
    asking.start()
    for verifier, engine in zip(verifiers, engines, strict=True):
        if engine is not engines[-1]:
            engine.allow(moves)
            until(partial(stepped, engine, moves), "the verifier has done what it may")
            asyncio.run_coroutine_threadsafe(verifier.draining.drain(0.0), verifier.loop).result(DEADLINE_S)
            engine.allow(1)  # the step that it is in
        else:
            engine.allow(tokens)
    asking.join(DEADLINE_S)
    for verifier in verifiers:
        verifier.__exit__(None, None, None)
    output = chunks[-1].output
    assert output is not None
    assert list(output.token_ids) == answer(PROMPT, SEED, tokens)
    assert min(engines[0].forks, engines[2].forks) > 0
    assert (True, True) in came
    assert (False, False) in came
    assert (False, True) not in came
    assert output.metrics.accepted_tokens > 0
