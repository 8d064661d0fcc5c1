"""Rounds of trees: which trees they draw, and what a round of them is worth."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from netlab.simulator import recording
from netlab.simulator.device import DeviceSettings
from netlab.simulator.link import Link
from netlab.simulator.run import Result, Rider, simulate
from speculation.device_tree import DeviceTree
from speculation.pace.base import PATIENCE_UNLIMITED_MS, Action, Objective
from speculation.pace.policies import find
from speculation.pace.tree_rounds import SPECINFER, BestFirst, FixedShape, TreeRounds
from tests.unit.views import view, view_of


def candidates(seed: int, path: tuple[int, ...]) -> Sequence[float]:
    """What a drafter says after a path, the likeliest first."""
    first = random.Random(f"{seed} {path}").uniform(0.3, 0.95)
    return [first, (1 - first) * 0.6, (1 - first) * 0.2, (1 - first) * 0.1]


def drawn(pace: TreeRounds, seed: int, *, budget: int = 256) -> tuple[list[float], list[int]]:
    """A round's tree: how likely each path is as the drafter says, and how many guesses there are at each depth."""
    tree, paths, depths = DeviceTree([7]), dict[tuple[int, ...], float](), list[int]()
    while pace.next(view_of(tree, pace, budget=budget)) is Action.DRAFT:
        tip = tree.tip
        assert tip is not None
        path = tuple(tree.path(tip))
        confidences = candidates(seed, path)[: pace.width]
        probabilities = pace.judge(confidences, tree.depth(tip), tree.survival(tip))
        count = len(probabilities)
        tree.grow(tip, range(count), confidences[:count], probabilities)
        for token, confidence in enumerate(confidences[:count]):
            paths[*path, token] = paths.get(path, 1.0) * confidence
    assert pace.next(view_of(tree, pace, budget=budget)) is Action.FLUSH
    assert pace.next(view_of(tree, pace, budget=budget, in_flight=True)) is Action.WAIT
    for depth, group in itertools.groupby(sorted(map(len, paths))):
        assert depth == len(depths) + 1
        depths.append(len(list(group)))
    return list(paths.values()), depths


def best(seed: int, nodes: int) -> float:
    """Most guesses that any tree of so many is expected to have right: the likeliest paths, one after the other."""
    total = 0.0
    heap: list[tuple[float, tuple[int, ...]]] = [(-p, (token,)) for token, p in enumerate(candidates(seed, ()))]
    heapq.heapify(heap)
    for _ in range(nodes):
        negative, path = heapq.heappop(heap)
        total -= negative
        for token, probability in enumerate(candidates(seed, path)):
            heapq.heappush(heap, (negative * probability, (*path, token)))
    return total


@pytest.mark.parametrize("widths", [SPECINFER, (2, 2, 1), (4, 2, 2, 1, 1), (1,)])
def test_a_fixed_shape_has_its_guesses_at_every_depth(widths: tuple[int, ...]) -> None:
    for seed in range(20):
        _, depths = drawn(FixedShape(widths), seed)
        assert depths == list(itertools.accumulate(widths, lambda count, width: count * width))


@pytest.mark.parametrize(("nodes", "least"), [(8, 0.1), (16, 0.05), (40, 0.02)])
def test_a_budget_goes_to_the_likeliest_paths(nodes: int, least: float) -> None:
    """Nearly: what a place says is not known before it is drawn, and the last places come with all their guesses."""
    for seed in range(40):
        likely, _ = drawn(BestFirst(nodes, least), seed)
        assert len(likely) < nodes + 4
        assert 0.9 * best(seed, len(likely)) <= sum(likely) <= best(seed, len(likely)) + 1e-9


def test_a_budget_buys_more_that_is_right_than_a_shape_does() -> None:
    for shape in (SPECINFER, (4, 2, 2, 1, 1)):
        trees = [drawn(FixedShape(shape), seed) for seed in range(40)]
        of_shape = sum(sum(likely) for likely, _ in trees)
        nodes = sum(trees[0][1])
        assert sum(sum(drawn(BestFirst(nodes - 3, 0.03), seed)[0]) for seed in range(40)) > 1.1 * of_shape


def test_a_verifier_that_takes_few_gets_no_more() -> None:
    _, depths = drawn(BestFirst(64), 1, budget=6)
    assert sum(depths) <= 6 + 3


def test_rounds_wait_and_a_useless_drafter_still_asks() -> None:
    for pace in (FixedShape(), BestFirst(8), find("multi-candidate")(), find("opt-tree:8")()):
        assert pace.patience_ms == PATIENCE_UNLIMITED_MS
        assert pace.next(view(can_draft=False)) is Action.FLUSH
        assert pace.judge([0.001, 0.0005], 0, 1.0), "one guess at least"


def test_shapes_that_cannot_be_are_refused() -> None:
    for widths in ((), (2, 0)):
        with pytest.raises(ValueError, match="at least one guess"):
            FixedShape(widths)
    with pytest.raises(ValueError, match="at least 1 node"):
        BestFirst(0)


PAIR = recording.read(Path(__file__).parents[1] / "data" / "demo_pair.jsonl").pair("demo")


def played(policy: str, rtt_ms: float, objective: Objective = Objective.LATENCY) -> list[Result]:
    """Six answers of one client, guesses of 1 ms, steps of 30."""
    make = find(policy, objective)
    return [
        simulate([Rider(answer, Link.of_rtt(rtt_ms), make(), DeviceSettings(1.0, 0.3))]).results[0]
        for answer in PAIR.answers(6, 96, 1)
    ]


@pytest.mark.parametrize("rtt_ms", [0, 50])
def test_capacity_needs_as_few_forwards_as_rounds_of_trees(rtt_ms: float) -> None:
    """And fewer than with lines, by more than a tenth; no answer is slower than plain streaming by more than 5 %."""
    lines, trees = (played(policy, rtt_ms, Objective.CAPACITY) for policy in ("adaptive:1", "adaptive"))
    rounds, streaming = played("opt-tree:32", rtt_ms), played("streaming", rtt_ms)
    of_lines, of_trees, of_rounds = (
        sum(result.target_forwards for result in results) for results in (lines, trees, rounds)
    )
    assert of_trees < 0.9 * of_lines
    assert of_trees < 1.05 * of_rounds
    assert all(ours.total_ms < 1.05 * theirs.total_ms for ours, theirs in zip(trees, streaming, strict=True))
