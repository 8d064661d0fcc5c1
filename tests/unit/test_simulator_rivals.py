"""The field's rules, each as it was published."""

from __future__ import annotations

import math

import pytest

from netlab.simulator import policies
from netlab.simulator.rivals import (
    Arms,
    ConfidenceThreshold,
    DraftAhead,
    EntropyBound,
    Heuristic,
    Rounds,
    SpecDecPlusPlus,
    UcbStop,
)
from speculation.draft_tree import Outcome
from speculation.pace import policies as paces
from speculation.pace.base import PATIENCE_UNLIMITED_MS, Action, News, View
from speculation.pace.policies import PolicyError
from tests.unit import views


def view(depth: int = 0, unsent: int | None = None, *, in_flight: bool = False, can_draft: bool = True) -> View:
    waiting = depth if unsent is None else unsent
    return views.view(depth=depth, unsent=waiting, in_flight=in_flight, can_draft=can_draft)


def news(*right: bool, now_ms: float = 0.0) -> News:
    outcomes = tuple(Outcome(i, 0.5, hit) for i, hit in enumerate(right))
    return News(now_ms, 9, len(right) + 1, outcomes, sum(right), None, 30.0, 0.0)


def round_tokens(pace: Rounds, confidences: list[float]) -> int:
    """Guesses that the pace draws before it sends."""
    depth = 0
    while pace.next(view(depth)) is Action.DRAFT:
        pace.drafted(5.0, confidences[depth] if depth < len(confidences) else 1.0)
        depth += 1
    assert pace.next(view(depth)) is Action.FLUSH
    assert pace.next(view(depth, in_flight=True)) is Action.WAIT
    return depth


def test_rounds_wait_for_their_verdict_and_nudge_without_a_drafter() -> None:
    assert Heuristic().patience_ms == PATIENCE_UNLIMITED_MS
    assert Heuristic().next(view(can_draft=False)) is Action.FLUSH


def test_heuristic_grows_by_two_and_shrinks_by_one() -> None:
    pace = Heuristic(first=2)
    for verdict, tokens in (
        ((), 2),
        ((True, True), 4),
        ((True, False), 3),
        ((False,), 2),
        ((False,), 1),
        ((False,), 1),
    ):
        pace.heard(news(*verdict))
        assert round_tokens(pace, []) == tokens


@pytest.mark.parametrize(
    ("pace", "confidences", "tokens"),
    [
        (ConfidenceThreshold(0.4), [0.9, 0.5, 0.3, 0.9], 3),
        (ConfidenceThreshold(0.4), [], 20),
        (ConfidenceThreshold(0.75, 16), [0.9, 0.7], 2),
        (ConfidenceThreshold(0.75, 16), [], 16),
        (SpecDecPlusPlus(0.7), [0.9, 0.5, 0.6, 0.9], 3),  # .27 is the first product below .3
        (SpecDecPlusPlus(0.3), [0.9, 0.5], 2),
    ],
)
def test_thresholds(pace: Rounds, confidences: list[float], tokens: int) -> None:
    assert round_tokens(pace, confidences) == tokens


def test_entropy_bound() -> None:
    half = 1 - math.sqrt(0.2 * math.log(2))
    assert round_tokens(EntropyBound(half - 0.01), [0.99, 0.5, 0.1, 0.99]) == 3
    assert round_tokens(EntropyBound(half + 0.01), [0.99, 0.5, 0.1, 0.99]) == 2


def test_a_verdict_begins_a_new_round() -> None:
    pace = SpecDecPlusPlus(0.3)
    assert round_tokens(pace, [0.1]) == 1
    pace.heard(news(False))
    assert round_tokens(pace, [0.9, 0.1]) == 2


def test_ucb_tries_every_length_and_settles_on_the_best() -> None:
    arms = Arms(most=6)
    assert [arms.pick() for _ in range(2)] == [1, 1]
    for _ in range(400):
        arm = arms.pick()
        arms.learn(arm, tokens=min(arm, 4), time_ms=50 + 5 * arm)
    assert max(range(1, 7), key=lambda arm: arms.rounds[arm]) == 4
    assert min(arms.rounds[1:]) >= 1


def test_ucb_counts_a_round_from_verdict_to_verdict() -> None:
    arms = Arms(most=3)
    pace = UcbStop(arms)
    pace.heard(news(now_ms=80))  # the first token: no round yet
    assert sum(arms.rounds) == 0
    assert round_tokens(pace, []) == 1
    pace.heard(news(True, now_ms=180))
    assert (arms.rounds[1], arms.tokens[1], arms.time_ms[1]) == (1, 2, 100)
    assert round_tokens(pace, []) == 2


def test_draft_ahead_draws_the_next_block_and_holds_it_back() -> None:
    pace = DraftAhead(2)
    assert pace.next(view(1, 1)) is Action.DRAFT
    assert pace.next(view(2, 2)) is Action.FLUSH
    assert pace.next(view(2, 0, in_flight=True)) is Action.DRAFT
    assert pace.next(view(4, 2, in_flight=True)) is Action.DRAFT  # the bonus token, and a block
    assert pace.next(view(5, 3, in_flight=True)) is Action.WAIT
    assert pace.next(view(2, 2)) is Action.FLUSH  # all was right, bonus token too


def test_unknown_names_list_the_valid_ones() -> None:
    for name in ("best", "fixed:", "fixed:x", "fixed:0", "sync:-1", "sync:1.5", "server-led:3"):
        with pytest.raises(
            PolicyError, match=r"there is no policy .*; there are adaptive, .*fixed:K.*entropy:THRESHOLD"
        ):
            policies.find(name)


def test_names_with_numbers() -> None:
    assert policies.find("fixed:7").candidates["fixed:7"]().max_depth == 7  # type: ignore[attr-defined]
    assert len(policies.find("sync").candidates) == 17
    assert set(policies.find("sync:3").candidates) == {"sync:3"}
    for name in paces.NAMES:  # whatever the product has can be simulated
        assert policies.find(name.replace(":K", ":4").replace(":W", ":3")).candidates
    assert policies.find("oracle").candidates == {}
