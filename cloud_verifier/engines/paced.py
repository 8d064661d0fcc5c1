"""An engine that takes its time: emulates a larger target for demos and experiments.

Each step is padded to ``base_ms + per_token_ms * positions`` by sleeping. Words are those of the engine inside; figures
measured on a paced engine must say so.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from cloud_verifier.engines.base import Block, Choices, Memory, SequenceId, TargetEngine


class PacedEngine(TargetEngine):
    """Wraps an engine and pads its steps."""

    def __init__(self, engine: TargetEngine, base_ms: float, per_token_ms: float = 0.0) -> None:
        """Raises ValueError for negative times."""
        if base_ms < 0 or per_token_ms < 0:
            raise ValueError(f"step times must not be negative: {base_ms} ms + {per_token_ms} ms per token")
        self._engine, self._base_ms, self._per_token_ms = engine, base_ms, per_token_ms
        self.info = engine.info

    def open(self, tokens: Sequence[int] = (), scope: str = "") -> SequenceId:
        return self._engine.open(tokens, scope)

    def reserve(self, sequence: SequenceId, tokens: int, parents: Sequence[int] = ()) -> None:
        self._engine.reserve(sequence, tokens, parents)

    @property
    def memory(self) -> Memory:
        return self._engine.memory

    def length(self, sequence: SequenceId) -> int:
        return self._engine.length(sequence)

    def step(self, blocks: Sequence[Block]) -> list[Choices]:
        began = time.perf_counter()
        choices = self._engine.step(blocks)
        positions = sum(len(block.tokens) for block in blocks)
        left = (self._base_ms + self._per_token_ms * positions) / 1000 - (time.perf_counter() - began)
        if left > 0:
            time.sleep(left)
        return choices

    def truncate(self, sequence: SequenceId, length: int) -> None:
        self._engine.truncate(sequence, length)

    def keep(self, sequence: SequenceId, length: int, path: Sequence[int]) -> None:
        self._engine.keep(sequence, length, path)

    def close(self, sequence: SequenceId) -> None:
        self._engine.close(sequence)
