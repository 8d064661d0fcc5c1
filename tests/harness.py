"""A verifier inside the test process: real gRPC on a real socket, any engine, its event loop on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any

import numpy as np

from cloud_verifier.engines.self_scheduling import Engine
from cloud_verifier.guessing.base import GuesserSource
from cloud_verifier.observability.interceptor import Watcher
from cloud_verifier.observability.metrics import Metrics
from cloud_verifier.scheduling.scheduler import Scheduler, SchedulerSettings
from cloud_verifier.security.authentication import Authentication
from cloud_verifier.server import running
from cloud_verifier.serving.address import Address
from cloud_verifier.serving.draining import Draining
from cloud_verifier.serving.open_request import Served
from cloud_verifier.serving.service import ServiceSettings, VerifierService
from cloud_verifier.serving.text_codec import TextError
from cloud_verifier.supervision import Supervisor
from edge_client.client import EdgeClient
from edge_client.drafters.base import Candidates, Drafter, DrafterError, DrafterInfo
from edge_client.riding.drafter_queue import DrafterQueue
from speculation.pace.base import PATIENCE_UNLIMITED_MS, Objective
from speculation.vocabulary.vocabulary import Vocabulary
from tests.mock_engine import VOCABULARY_SIZE, next_token


class LetterCodec:
    """Token 2 + n is the n-th of these letters; 0 and 1 are special and have no text."""

    LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    fingerprint = words_fingerprint = "letters"
    vocabulary = Vocabulary(("<begin>", "<end>", *LETTERS), frozenset({0, 1}))
    end_ids = frozenset({1})
    longest_token_bytes = 1

    def encode_text(self, text: str) -> list[int]:
        return [2 + self.LETTERS.index(c) for c in text]

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        if any(m["role"] not in ("user", "assistant") for m in messages):
            raise TextError("only user and assistant may speak")
        return [0, *self.encode_text("".join(m["content"] for m in messages))]

    def stream(self, before: Sequence[int] = ()) -> LetterStream:
        return LetterStream()

    def text(self, tokens: Sequence[int]) -> str:
        return "".join(self.LETTERS[t - 2] for t in tokens if t >= 2)


class LetterStream:
    def push(self, token: int) -> str:
        return LetterCodec().text([token])

    def rest(self) -> str:
        return ""


class InProcessVerifier:
    """Context manager; `address` is where it listens."""

    def __init__(
        self,
        engine: Engine,
        codec: Any = None,
        *,
        max_lookahead: int = 64,
        scheduler: SchedulerSettings | None = None,
        service: ServiceSettings | None = None,
        objective: Objective = Objective.LATENCY,
        max_patience_ms: int = PATIENCE_UNLIMITED_MS,
        address: Address | None = None,
        authentication: Authentication | None = None,
        watchers: Sequence[Watcher] = (),
        metrics: Metrics | None = None,
        others: Mapping[str, Engine] | None = None,
        guessers: GuesserSource | None = None,
    ) -> None:
        self.engine, self._where = engine, address or Address(port=0)
        mock_or_real: Any = codec or LetterCodec()
        self._served = Served(
            "mock", engine.info, mock_or_real, max_lookahead, objective, max_patience_ms, guessers=guessers
        )
        self._settings = (scheduler, service, authentication)
        self._watched: dict[str, Any] = {
            "watchers": watchers,
            "metrics": metrics,
            "others": [
                (one, Served(name, one.info, mock_or_real, max_lookahead, objective, max_patience_ms))
                for name, one in (others or {}).items()
            ],
        }
        self.loop = asyncio.new_event_loop()
        self._ready: Future[int] = Future()
        self.service: VerifierService
        self.scheduler: Scheduler
        self.draining: Draining
        self.supervisor: Supervisor

    def __enter__(self) -> InProcessVerifier:
        self._thread = threading.Thread(target=self.loop.run_until_complete, args=(self._main(),), daemon=True)
        self._thread.start()
        self.address = f"127.0.0.1:{self._ready.result(timeout=10)}"
        return self

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        try:
            async with running(self.engine, self._served, self._where, *self._settings, **self._watched) as parts:
                _, self.service, self.scheduler, self.draining, self.supervisor = parts
                self._ready.set_result(parts.port)
                await self._stop.wait()
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=10)
        assert not self._thread.is_alive()
        self.loop.close()  # three descriptors each


def queue_of(client: EdgeClient) -> DrafterQueue:
    """At the client's drafter."""
    assert client._drafter is not None
    return client._drafter.queue


class MockDrafter(Drafter):
    """Guesses the mock target's tokens right with a given probability, from a seeded generator; can be told to fail."""

    def __init__(self, seed: int, target_seed: int, accuracy: float, fail_at: int | None = None) -> None:
        self.info = DrafterInfo("mock", VOCABULARY_SIZE, LetterCodec.fingerprint, 4096)
        self._rng = np.random.default_rng(seed)
        self._target_seed, self._accuracy, self._fail_at = target_seed, accuracy, fail_at
        self._tokens: list[int] = []

    @property
    def length(self) -> int:
        return len(self._tokens)

    def feed(self, tokens: Sequence[int]) -> None:
        if self._fail_at is not None and len(self._tokens) >= self._fail_at:
            raise DrafterError("told to fail")
        self._tokens.extend(tokens)

    def candidates(self) -> Candidates:
        token = next_token(self._tokens, self._target_seed)
        if self._rng.random() > self._accuracy:
            token = int(self._rng.integers(VOCABULARY_SIZE))
        return Candidates(np.array([token]), np.array([-0.1]))

    def rollback(self, length: int) -> None:
        assert 0 <= length <= len(self._tokens)
        del self._tokens[length:]

    def close(self) -> None:
        pass
