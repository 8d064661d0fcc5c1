"""Sessions at random: drafts right and wrong, cuts, resumes of one session by two streams, evictions, few pages.

Every answer that ends must be the target's, and nothing may be left when all have ended.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from outrider.v1 import verifier_pb2 as pb

from cloud_verifier.engines.base import Block, Choices
from cloud_verifier.guessing.model import DraftModel
from cloud_verifier.scheduling.scheduler import SchedulerSettings
from cloud_verifier.serving.service import ServiceSettings
from edge_client.errors import SessionError
from tests.harness import InProcessVerifier
from tests.mock_engine import answer
from tests.paged_mock_engine import PagedMockEngine
from tests.service.raw import Stream, opening

LIVES, ANSWERS, STREAMS = 12, 3, 100


class SlowEngine(PagedMockEngine):
    """A step takes long enough for others to come between."""

    def step(self, blocks: Sequence[Block]) -> list[Choices]:
        time.sleep(0.001)
        return super().step(blocks)


class Life:
    """One device that asks for some answers, one after the other."""

    def __init__(self, address: str, seed: int) -> None:
        self._address, self._rng = address, random.Random(seed)

    def live(self) -> int:
        """How many answers came to their end; asserts that they are right."""
        for _ in range(ANSWERS):
            rng = self._rng
            self._seed, self._count = rng.randrange(1, 1 << 60), rng.randrange(5, 60)
            self._prompt = [2 + (self._seed + i) % 50 for i in range(rng.randrange(3, 30))]
            self._right = [*self._prompt, *answer(self._prompt, self._seed, self._count)]
            self._log, self._session = list(self._prompt), ""
            assert any(self._stream() for _ in range(STREAMS)), "an answer never ended"
            assert self._log == self._right
        return ANSWERS

    def _stream(self) -> bool:
        """Attach, read some messages and cut; whether the answer ended."""
        try:
            with Stream(self._address, self._request(), deadline_s=20.0) as stream:
                self._session = stream.opened().session_id
                return any(self._exchange(stream) for _ in range(self._rng.randrange(1, 30)))
        except grpc.RpcError as error:
            refused = SessionError.from_rpc(error)  # type: ignore[arg-type]
            assert refused.reason not in ("ENGINE_FAILED", "VERIFIER_FAULT"), refused
            if refused.code == "NOT_FOUND":
                self._session = ""  # evicted: open again from the log
            return False

    def _request(self) -> pb.Open:
        if self._session:
            return opening(resume=pb.Resume(session_id=self._session, known_length=len(self._log)), seed=0)
        return opening(
            prompt_ids=pb.TokenIds(ids=self._prompt),
            seed=self._seed,
            sampling=pb.SamplingParams(max_tokens=self._count),
            continue_from=self._log[len(self._prompt) :],
            patience_ms=self._rng.choice([0, 5, 50]),
        )

    def _exchange(self, stream: Stream) -> bool:
        rng, log = self._rng, self._log
        if rng.random() < 0.5:
            guesses = self._right[len(log) :][: rng.randrange(8)]
            if guesses and rng.random() < 0.3:
                guesses[rng.randrange(len(guesses))] = 2
            if rng.random() < 0.4:  # a wrong guess before each, so that twigs are right
                pairs = [token for guess in guesses for token in (guess ^ 1, guess)]
                parents = [0, 0, *([1, 2] * len(guesses))][: len(pairs)]
                stream.draft(len(log), pairs, len(log), parents=parents)
            else:
                stream.draft(len(log), guesses, len(log))
        response = stream.read()
        commit = response.commit
        if response.WhichOneof("message") == "commit":
            assert commit.start <= len(log)
            log += commit.tokens[len(log) - commit.start :]
            assert log == self._right[: len(log)]
        return bool(response.WhichOneof("message") == "finished")


class Doubtful(PagedMockEngine):
    """A small model beside the target: wrong at every fourth place, and with less room than there are sessions."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__(pages=24, page_tokens=4, max_sequences=8, context_limit=100)
        self._fails, self._rng = fails, random.Random(3)

    def step(self, blocks: Sequence[Block]) -> list[Choices]:
        if self._fails and self._rng.random() < 0.02:
            raise RuntimeError("now and then")
        return super().step(blocks)

    def _evaluated(self, block: Block) -> Iterator[int]:
        for token in super()._evaluated(block):
            yield 2 if token % 4 == 0 else token


@pytest.mark.parametrize("guessing", ["none", "a model", "a model that fails"])
def test_answers_are_right_and_nothing_is_left(guessing: str) -> None:
    engine = SlowEngine(pages=40, page_tokens=4, max_sequences=12, context_limit=120)
    drafting = Doubtful(fails=guessing == "a model that fails")
    service = ServiceSettings(lease_s=0.3, away_s=0.1)
    guessers = None if guessing == "none" else DraftModel(drafting, clock=lambda: 0.0)  # its time is not the matter
    with InProcessVerifier(
        engine, service=service, scheduler=SchedulerSettings(40, 16, 32), guessers=guessers
    ) as verifier:
        with ThreadPoolExecutor(LIVES) as pool:
            ended = sum(pool.map(lambda seed: Life(verifier.address, seed).live(), range(LIVES)))
        assert ended == LIVES * ANSWERS
        counters = verifier.scheduler.counters
        assert counters.preemptions > 0  # there was less memory than wanted
        assert (counters.own_accepted_tokens > 0) == (guessers is not None)
        deadline_s = time.monotonic() + 20
        while (not engine.empty or verifier.service.sessions) and time.monotonic() < deadline_s:
            time.sleep(0.05)  # leases end
        assert engine.empty
        assert drafting.empty
        assert engine.twigs > 0
        assert verifier.service.sessions == 0
