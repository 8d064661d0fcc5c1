import pytest

from speculation.pace.base import PATIENCE_UNLIMITED_MS, Action, BoundedLookahead, Streaming, Synchronous
from tests.unit.views import view


def test_streaming_never_drafts() -> None:
    assert Streaming().next(view()) is Action.WAIT


def test_a_synchronous_round() -> None:
    pace = Synchronous(2)
    assert pace.patience_ms == PATIENCE_UNLIMITED_MS
    assert pace.next(view()) is Action.DRAFT
    assert pace.next(view(depth=2, unsent=2)) is Action.FLUSH
    assert pace.next(view(depth=2, in_flight=True)) is Action.WAIT


def test_a_synchronous_round_without_a_drafter_asks_for_one_token() -> None:
    assert Synchronous(4).next(view(can_draft=False)) is Action.FLUSH
    assert Synchronous(0).next(view()) is Action.FLUSH
    with pytest.raises(ValueError, match="at least 0"):
        Synchronous(-1)


def test_the_lookahead_is_bounded_by_depth_survival_budget_and_the_drafter() -> None:
    pace = BoundedLookahead(max_depth=8, min_survival=0.1)
    assert pace.next(view(depth=7)) is Action.DRAFT
    for stop in ({"depth": 8}, {"survival": 0.05}, {"depth": 3, "budget": 3}, {"can_draft": False}):
        assert pace.next(view(**stop)) is Action.WAIT
        assert pace.next(view(**stop, unsent=1)) is Action.FLUSH


def test_guesses_go_out_in_blocks_or_when_they_age() -> None:
    pace = BoundedLookahead(block_tokens=4, block_age_ms=5)
    assert pace.next(view(depth=3, unsent=3, unsent_age_ms=1)) is Action.DRAFT
    assert pace.next(view(depth=4, unsent=4)) is Action.FLUSH
    assert pace.next(view(depth=1, unsent=1, unsent_age_ms=6)) is Action.FLUSH
