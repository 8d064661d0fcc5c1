"""What a verifier's own guess costs, and where it is put beside a device's."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable

import pytest

from cloud_verifier.engines.base import Sampler
from cloud_verifier.guessing.base import Job, Start
from cloud_verifier.guessing.model import DraftModel
from cloud_verifier.guessing.ngram import KEPT_TOKENS, READ_TOKENS, NgramGuesser
from cloud_verifier.scheduling import guess_thread
from cloud_verifier.scheduling.position_cost import PositionCost
from speculation.sampling import SamplingParams
from speculation.verifier_tree import Node, Picked, VerifierTree
from tests.mock_engine import MockEngine, next_token


def nodes(*tokens: int) -> list[Node]:
    return [Node(token, 0.9, 0, 0, None) for token in tokens]


def first(guesser: NgramGuesser, log: list[int], count: int, path: tuple[int, ...] = ()) -> list[int]:
    guesses = guesser.after(log, path)
    found = [guess.token for guess, _ in zip(guesses, range(count), strict=False)]
    guesses.close()
    return found


def test_own_guesses_go_on_after_a_line() -> None:
    picked = Picked(nodes(1, 2)).with_own({1: nodes(8, 9)})
    assert (picked.tokens, picked.parents, sorted(picked.own)) == ([1, 2, 8, 9], (), [2, 3])
    alone = Picked(()).with_own({-1: nodes(8)})
    assert (alone.tokens, alone.parents, sorted(alone.own)) == ([8], (), [0])


def test_own_guesses_beside_a_line_branch_off() -> None:
    picked = Picked(nodes(1, 2)).with_own({-1: nodes(7), 0: nodes(8, 9), 1: nodes(6)})
    assert picked.tokens == [1, 2, 6, 8, 9, 7]
    assert picked.parents == [-1, 0, 1, 0, 3, -1]
    assert picked.own == {2, 3, 4, 5}


def test_own_guesses_go_on_where_a_tree_ends() -> None:
    tree = Picked(nodes(1, 2, 3, 4), [-1, 0, 0, 2])  # 1 2, 1 3 4
    picked = tree.with_own({1: nodes(8, 9), 3: nodes(7)})
    assert (picked.tokens, sorted(picked.own)) == ([1, 2, 8, 9, 3, 4, 7], [2, 3, 6])
    assert picked.parents == [-1, 0, 1, 2, 0, 4, 5]


def test_no_path_of_a_tree_is_lost_when_own_guesses_join_it() -> None:
    rng = random.Random(5)

    def paths(picked: Picked) -> list[list[int]]:
        return sorted(picked.path_to(index) for index in range(len(picked.nodes)))

    for _ in range(300):
        count = rng.randrange(12)
        drawn = VerifierTree([0])
        for at in range(count):  # as a device draws: each on any guess before it, or on the log
            drawn.draft(1, [rng.randrange(1, 9)], 1, 64, parents=[rng.randrange(at + 1)])
        picked = drawn.pick(None, 64)
        lines = {
            at: nodes(*(100 + 10 * at + place for place in range(rng.randrange(1, 4))))
            for at in range(-1, len(picked.nodes))
            if rng.random() < 0.4
        }
        joined = picked.with_own(lines)
        added = [
            picked.path_to(at) + [node.token for node in line[: place + 1]]
            for at, line in lines.items()
            for place in range(len(line))
        ]
        assert paths(joined) == sorted([*paths(picked), *added])
        assert {joined.nodes[index].token >= 90 for index in joined.own} <= {True}
        assert len(joined.own) == len(added)
        assert all(joined.parent(index) < index for index in range(len(joined.nodes)))


def test_a_small_model_says_what_it_would_say_alone_wherever_it_is_asked() -> None:
    """Whatever it has read before: logs that grew as it guessed or not, paths that it agrees with or not."""
    rng = random.Random(9)
    engine = MockEngine()
    source = DraftModel(engine)
    sampler = Sampler(SamplingParams(), 5, 3)
    guesser = source(sampler)
    text = [5, 9, 12]
    asked = 0
    for _ in range(120):
        path: list[int] = []
        for _ in range(rng.randrange(5)):
            path.append(next_token([*text, *path], 5) if rng.random() < 0.7 else 3)
        said = [{path[at]: 0.3} for at in range(len(path))]
        starts = [Start(rng.random(), rng.choice([at, {7: 0.1}, {}])) for at in [*said, {}]]
        turns = iter(range(rng.randrange(6)))
        source.draw(
            [Job(guesser, text, path, starts, 16, lambda _: 0.8)], lambda *_, turns=turns: next(turns, None) is not None
        )
        length, choices = guesser.ready
        if length == len(text):
            asked += len(choices)
            assert choices == {at: next_token([*text, *at], 5) for at in choices}
        assert engine.sequences[guesser.sequence] == guesser.held if guesser.sequence else not guesser.held
        assert len(guesser.said) == len(guesser.held)
        for _ in range(rng.randrange(4)):
            text.append(next_token(text, 5) if rng.random() < 0.7 else rng.randrange(2, 60))
    assert asked > 400
    guesser.close()
    assert not engine.sequences


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


def test_nothing_is_freed_of_a_model_that_has_not_come_back_when_the_verifier_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guess_thread, "PATIENCE_S", 0.05)
    began, free = threading.Event(), threading.Event()
    engine = MockEngine()
    source = DraftModel(engine)
    guesser = source(Sampler(SamplingParams(), 5, 1))
    guesser.sequence = engine.open([1])

    def hang(_wanted: Callable[[], bool]) -> None:
        began.set()
        free.wait()

    async def live() -> None:
        thread = guess_thread.GuessThread()
        drawing = asyncio.create_task(thread.draw(hang, 60.0))
        await asyncio.to_thread(began.wait)
        drawing.cancel()
        await asyncio.wait([drawing])
        thread.end()
        thread.close(guesser)

    try:
        asyncio.run(live())
        assert engine.sequences
    finally:
        free.set()
