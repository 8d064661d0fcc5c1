import pytest

from speculation.draft_tree import Outcome
from speculation.pace import policies
from speculation.pace.adaptive import Adaptive
from speculation.pace.base import (
    PATIENCE_UNLIMITED_MS,
    Action,
    FixedLookahead,
    News,
    Objective,
    Pipelined,
    Synchronous,
)
from speculation.pace.stopping import OptimalRounds
from tests.unit.views import view


def test_every_name_makes_a_fresh_pace() -> None:
    for name in policies.NAMES:
        make = policies.find(name.replace("K", "4").replace("W", "3"))
        assert make() is not make()


def test_numbers_and_objectives_reach_the_pace() -> None:
    sync, fixed = policies.find("sync:7")(), policies.find("fixed:9")()
    assert isinstance(sync, Synchronous)
    assert sync.draft_tokens == 7
    assert isinstance(fixed, FixedLookahead)
    assert fixed.max_depth == 9
    adaptive = policies.find("adaptive", Objective.CAPACITY)()
    assert isinstance(adaptive, Adaptive)
    assert adaptive.objective is Objective.CAPACITY


@pytest.mark.parametrize(
    "name", ["", "best", "sync:0", "sync:", "fixed:-1", "fixed:x", "adaptive:5", "tree:0", "sync:9999", "sync:²"]
)
def test_an_unknown_name_lists_the_valid_ones(name: str) -> None:
    with pytest.raises(policies.PolicyError, match=r"adaptive, server-led, pipelined, sync, streaming, .*fixed:K"):
        policies.find(name)


def test_pipelined_never_pauses_for_a_verdict() -> None:
    pace = Pipelined(8, 2)
    assert pace.patience_ms == PATIENCE_UNLIMITED_MS
    assert pace.next(view(depth=2, in_flight=True)) is Action.DRAFT
    assert pace.next(view(depth=4, unsent=2, in_flight=True)) is Action.FLUSH
    assert pace.next(view(depth=8, in_flight=True)) is Action.WAIT
    assert pace.next(view(can_draft=False)) is Action.FLUSH
    with pytest.raises(ValueError, match="at least 1"):
        Pipelined(0)


def play(pace: OptimalRounds, *, rounds: int, overhead_ms: float, draft_ms: float, right: int) -> int:
    """Rounds of which the first `right` guesses are right; returns the length of the last."""
    now_ms, length = 0.0, 0
    for _ in range(rounds):
        length = 0
        while pace.next(view(depth=length)) is Action.DRAFT:
            pace.drafted(draft_ms, 0.8)
            length += 1
        assert pace.next(view(depth=length, in_flight=True)) is Action.WAIT
        now_ms += overhead_ms + length * draft_ms
        hits = min(right, length)
        outcomes = tuple(Outcome(i, 0.8, i < right) for i in range(min(length, right + 1)))
        pace.heard(News(now_ms, 0, hits + 1, outcomes, hits, None, 30.0, 0.0))
    return length


def test_rounds_grow_with_what_a_round_costs_and_shrink_with_what_a_guess_costs() -> None:
    short = play(OptimalRounds(), rounds=60, overhead_ms=30, draft_ms=10, right=4)
    long = play(OptimalRounds(), rounds=60, overhead_ms=400, draft_ms=10, right=4)
    dear = play(OptimalRounds(), rounds=60, overhead_ms=30, draft_ms=40, right=4)
    assert dear < short <= long
    assert 4 <= short <= 8


def test_rounds_of_a_useless_drafter_are_short() -> None:
    assert play(OptimalRounds(), rounds=60, overhead_ms=30, draft_ms=10, right=0) == 1


def test_a_round_without_a_drafter_asks_for_one_token() -> None:
    assert OptimalRounds().next(view(can_draft=False)) is Action.FLUSH
