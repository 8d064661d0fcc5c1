"""What a verifier's own guess costs, and where it is put beside a device's."""

from __future__ import annotations

import random

import pytest

from cloud_verifier.engines.base import Sampler
from cloud_verifier.guessing.ngram import KEPT_TOKENS, READ_TOKENS, NgramGuesser
from cloud_verifier.scheduling.position_cost import PositionCost
from speculation.sampling import SamplingParams
from speculation.verifier_tree import Node, Picked


def nodes(*tokens: int) -> list[Node]:
    return [Node(token, 0.9, 0, 0, None) for token in tokens]


def first(guesser: NgramGuesser, log: list[int], count: int, path: tuple[int, ...] = ()) -> list[int]:
    guesses = guesser.after(log, path)
    found = [guess.token for guess, _ in zip(guesses, range(count), strict=False)]
    guesses.close()
    return found


def test_own_guesses_go_on_after_a_line() -> None:
    picked = Picked(nodes(1, 2)).with_own(nodes(8, 9))
    assert (picked.tokens, picked.parents, picked.own) == ([1, 2, 8, 9], (), range(2, 4))
    alone = Picked(()).with_own(nodes(8))
    assert (alone.tokens, alone.parents, alone.own) == ([8], (), range(1))


def test_own_guesses_go_on_after_the_likeliest_path_of_a_tree() -> None:
    tree = Picked(nodes(1, 2, 3, 4), [-1, 0, 0, 2])  # 1 2, 1 3 4
    assert tree.trunk == 2
    picked = tree.with_own(nodes(8, 9))
    assert (picked.tokens, picked.own) == ([1, 2, 8, 9, 3, 4], range(2, 4))
    assert picked.parents == [-1, 0, 1, 2, 0, 4]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_lookup_says_what_followed_and_keeps_nothing_of_it(temperature: float) -> None:
    log = [1, 2, 3, 4, 5, 6, 1, 2, 3]
    guesser = NgramGuesser(Sampler(SamplingParams(temperature=temperature), 5, len(log)))
    for _ in range(2):
        assert first(guesser, log, 3) == [4, 5, 6]
        assert first(guesser, log, 2, (4, 5)) == [6, 1]
        assert first(guesser, log, 2, (9, 9)) == []
    log += [4, 5]
    assert first(guesser, log, 1) == [6]


def test_a_long_prompt_is_read_in_pieces_and_only_its_end_is_kept() -> None:
    log = [1, 2, 3, 4] * ((KEPT_TOKENS + 4 * READ_TOKENS) // 4)
    guesser = NgramGuesser(Sampler(SamplingParams(temperature=0.0), 5, len(log)))
    asked = 1
    while not (found := first(guesser, log, 2)):
        asked += 1
    assert found == [1, 2]
    assert asked == KEPT_TOKENS // READ_TOKENS
    assert len(guesser._index.tokens) == KEPT_TOKENS


def test_a_position_costs_what_steps_say_it_costs() -> None:
    cost, rng = PositionCost(64), random.Random(3)
    assert (cost.step_s, cost.position_s) == (0.0, 0.0)
    cost.stepped(1, 0.03)
    assert cost.position_s == pytest.approx(0.03 * 0.2 / 64, rel=0.1)  # as assumed: one step says nothing of it
    for _ in range(400):
        positions = rng.randrange(1, 64)
        cost.stepped(positions, 0.03 + 0.0004 * positions + rng.gauss(0, 0.001))
    assert cost.position_s == pytest.approx(0.0004, rel=0.15)
    for _ in range(400):
        positions = rng.randrange(1, 64)
        cost.stepped(positions, 0.03 - 0.0002 * positions)
    assert cost.position_s == 0.0
