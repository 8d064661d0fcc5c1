"""A drafter's seat: what it holds of a conversation that may be longer than the drafter's context."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.drafters.ngram import NgramDrafter
from edge_client.seat import DrafterSeat

CONTEXT_TOKENS = 16
PIECE_TOKENS = 5


def catch_up(seat: DrafterSeat, conversation: list[int]) -> None:
    """As the riding loop does."""
    seat.reach(len(conversation))
    while seat.end < len(conversation):
        seat.feed(conversation[seat.end : seat.end + PIECE_TOKENS])


@settings(deadline=None, derandomize=True)
@given(
    steps=st.lists(
        st.one_of(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.floats(0, 1)), min_size=1, max_size=20
    )
)
def test_the_drafter_always_holds_the_end_of_the_conversation(steps: list[list[int] | float]) -> None:
    drafter = NgramDrafter(context_tokens=CONTEXT_TOKENS)
    seat, conversation = DrafterSeat(drafter), [1]
    for step in steps:
        if isinstance(step, list):
            conversation += step
        else:
            length = max(1, round(step * len(conversation)))
            seat.rollback(length)
            del conversation[length:]
            conversation.append(3)
        catch_up(seat, conversation)
        assert seat.end == len(conversation)
        assert drafter.length == len(seat.tokens) <= CONTEXT_TOKENS
        assert seat.tokens == conversation[seat.start :]
        assert len(seat.tokens) >= min(len(conversation), 1)


def test_it_begins_again_once_in_half_a_context() -> None:
    seat, conversation, begun = DrafterSeat(NgramDrafter(context_tokens=CONTEXT_TOKENS)), [0], set[int]()
    for token in range(1, 101):
        conversation.append(token)
        catch_up(seat, conversation)
        begun.add(seat.start)
    assert begun == set(range(0, 91, 9))  # full at 16, and then half of it and the next token again


def test_the_next_turn_of_a_long_conversation_is_not_read_again() -> None:
    drafter = NgramDrafter(context_tokens=CONTEXT_TOKENS)
    seat, conversation = DrafterSeat(drafter), list(range(40))
    catch_up(seat, conversation)
    start = seat.start
    assert start > 0
    seat.sit([*conversation, 50, 51])
    assert seat.start == start
    assert seat.end == 40
    seat.sit([7, 8])  # another conversation
    assert not seat.tokens
    catch_up(seat, [7, 8])
    assert (seat.start, seat.tokens) == (0, [7, 8])


def test_ids_of_another_vocabulary_are_forgotten() -> None:
    seat = DrafterSeat(NgramDrafter())
    seat.adopt_vocabulary("sha256:1", 100)
    catch_up(seat, [1, 2, 3])
    seat.adopt_vocabulary("sha256:1", 100)
    assert seat.end == 3
    seat.adopt_vocabulary("sha256:2", 100)
    assert seat.end == 0
    assert seat.drafter.length == 0
