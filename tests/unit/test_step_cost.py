"""How many positions of a forward are nearly free."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cloud_verifier.engines.base import Block, Choices
from cloud_verifier.scheduling.step_cost import MOST, free_positions
from tests.mock_engine import MockEngine


class Timed(MockEngine):
    """A step takes base_s, and per_position_s for every position beyond `free`; the first takes long."""

    def __init__(self, base_s: float, free: int, per_position_s: float, context_limit: int = 8192) -> None:
        super().__init__(context_limit=context_limit)
        self.now_s = 0.0
        self._base_s, self._free, self._per_position_s = base_s, free, per_position_s
        self._first_s = 10.0

    def step(self, blocks: Sequence[Block]) -> list[Choices]:
        positions = sum(len(block.tokens) for block in blocks)
        self.now_s += self._first_s + self._base_s + max(0, positions - self._free) * self._per_position_s
        self._first_s = 0.0
        for block in blocks:
            self.sequences[block.sequence] += block.tokens
        return [Choices([0] * block.choices) for block in blocks]


@pytest.mark.parametrize(
    ("free", "per_position_s", "least", "most"),
    [(200, 0.001, 180, 206), (8, 0.03, 8, 8), (0, 0.0001, 40, 78), (10**6, 1.0, MOST, MOST)],
)
def test_as_many_as_take_a_fifth_longer_than_a_few(free: int, per_position_s: float, least: int, most: int) -> None:
    engine = Timed(0.03, free, per_position_s)
    assert least <= free_positions(engine, lambda: engine.now_s) <= most
    assert not engine.sequences, "the sequence was not closed"


def test_never_more_than_a_sequence_may_have() -> None:
    engine = Timed(0.03, 10**6, 1.0, context_limit=50)
    assert free_positions(engine, lambda: engine.now_s) == 50
