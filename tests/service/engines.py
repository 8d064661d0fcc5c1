"""Mock targets that misbehave, or that step only when a test lets them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from cloud_verifier.engines.base import Block, Choices, Logprobs, SequenceId
from tests.mock_engine import MockEngine
from tests.service.raw import DEADLINE_S, SEED


class GatedEngine(MockEngine):
    """Steps once for every `allow`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._permits = threading.Semaphore(0)

    def allow(self, steps: int) -> None:
        self._permits.release(steps)

    def forbid(self) -> None:
        """Take back what was allowed and not used."""
        while self._permits.acquire(blocking=False):
            pass

    def step(self, blocks: Sequence[Block]) -> list[Choices]:
        assert self._permits.acquire(timeout=DEADLINE_S), "no permit came"
        return super().step(blocks)


class WordyEngine(MockEngine):
    """Cheap tokens with many log-probabilities: answers that fill a socket's buffers soon."""

    def _evaluate(self, block: Block) -> Choices:
        tokens = self.sequences[block.sequence]
        tokens.extend(block.tokens)
        chosen = [2 + (len(tokens) - block.choices + i) % 60 for i in range(block.choices)]
        wanted = block.sampler.params.logprobs or 0
        return Choices(chosen, [Logprobs(-1.0, tuple(range(wanted)), (-2.0,) * wanted) for _ in chosen])


class FaultyEngine(MockEngine):
    """Fails in the ways that the contract forbids, on sequences that begin with token 0."""

    def __init__(self, fault: str, **settings: Any) -> None:
        super().__init__(**settings)
        self._fault = fault

    def _struck(self, sequence: SequenceId) -> bool:
        return self.sequences[sequence][:1] == [0]

    def open(self, tokens: Sequence[int] = (), scope: str = "") -> SequenceId:
        if self._fault == "open" and len(self.sequences) == 1:
            raise MemoryError("no room after all")
        return super().open(tokens, scope)

    def step(self, blocks: Sequence[Block]) -> list[Choices]:
        struck = any(self._struck(block.sequence) or block.tokens[0] == 0 for block in blocks)
        if struck and self._fault == "step":
            raise RuntimeError("told to fail")
        results = super().step(blocks)
        return results[:-1] if struck and self._fault == "short" else results

    def truncate(self, sequence: SequenceId, length: int) -> None:
        if self._fault == "truncate" and self._struck(sequence):
            raise RuntimeError("told to fail")
        super().truncate(sequence, length)

    def close(self, sequence: SequenceId) -> None:
        struck = self._struck(sequence)
        super().close(sequence)
        if self._fault == "close" and struck:
            raise RuntimeError("told to fail")


class FailingEngine(MockEngine):
    """Fails on so many sessions with `SEED`, once their logs have `at` tokens; then on every step they are in."""

    def __init__(self, sessions: int, at: int) -> None:
        super().__init__()
        self.sessions, self.at = sessions, at
        self.struck: set[SequenceId] = set()
        self.temperatures: set[float] = set()

    def step(self, blocks: Sequence[Block]) -> list[Choices]:
        for block in blocks:
            self.temperatures.add(block.sampler.params.temperature)
            due = block.sampler.seed == SEED and self.length(block.sequence) + len(block.tokens) >= self.at
            if due and len(self.struck) < self.sessions:
                self.struck.add(block.sequence)
            if block.sequence in self.struck:
                raise RuntimeError("told to fail on this session")
        return super().step(blocks)
