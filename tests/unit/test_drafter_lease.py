"""A drafter's lease: what it holds of a conversation that may be longer than the drafter's context."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_client.drafters.lookup.ngram import NgramDrafter
from edge_client.riding.drafter_lease import DrafterLease

CONTEXT_TOKENS = 16
PIECE_TOKENS = 5


def catch_up(lease: DrafterLease, conversation: list[int]) -> None:
    """As the riding loop does."""
    lease.reach(len(conversation))
    while lease.end < len(conversation):
        lease.feed(conversation[lease.end : lease.end + PIECE_TOKENS])


@given(
    steps=st.lists(
        st.one_of(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.floats(0, 1)), min_size=1, max_size=20
    )
)
def test_the_drafter_always_holds_the_end_of_the_conversation(steps: list[list[int] | float]) -> None:
    drafter = NgramDrafter(context_tokens=CONTEXT_TOKENS)
    lease, conversation = DrafterLease(drafter), [1]
    for step in steps:
        if isinstance(step, list):
            conversation += step
        else:
            length = max(1, round(step * len(conversation)))
            lease.rollback(length)
            del conversation[length:]
            conversation.append(3)
        catch_up(lease, conversation)
        assert lease.end == len(conversation)
        assert drafter.length == len(lease.tokens) <= CONTEXT_TOKENS
        assert lease.tokens == conversation[lease.start :]
        assert len(lease.tokens) >= min(len(conversation), 1)


def test_it_begins_again_once_in_half_a_context() -> None:
    lease, conversation, begun = DrafterLease(NgramDrafter(context_tokens=CONTEXT_TOKENS)), [0], set[int]()
    for token in range(1, 101):
        conversation.append(token)
        catch_up(lease, conversation)
        begun.add(lease.start)
    assert begun == set(range(0, 91, 9))  # full at 16, and then half of it and the next token again


def test_the_next_turn_of_a_long_conversation_is_not_read_again() -> None:
    drafter = NgramDrafter(context_tokens=CONTEXT_TOKENS)
    lease, conversation = DrafterLease(drafter), list(range(40))
    catch_up(lease, conversation)
    start = lease.start
    assert start > 0
    lease.keep_common_prefix([*conversation, 50, 51])
    assert lease.start == start
    assert lease.end == 40
    lease.keep_common_prefix([7, 8])  # another conversation
    assert not lease.tokens
    catch_up(lease, [7, 8])
    assert (lease.start, lease.tokens) == (0, [7, 8])


def test_ids_of_another_vocabulary_are_forgotten() -> None:
    lease = DrafterLease(NgramDrafter())
    lease.adopt_vocabulary("sha256:1", 100)
    catch_up(lease, [1, 2, 3])
    lease.adopt_vocabulary("sha256:1", 100)
    assert lease.end == 3
    lease.adopt_vocabulary("sha256:2", 100)
    assert lease.end == 0
    assert lease.drafter.length == 0


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("draw"), st.lists(st.integers(0, 1), max_size=6)),
            st.tuples(st.just("log"), st.lists(st.integers(0, 1), min_size=1, max_size=6)),
        ),
        min_size=1,
        max_size=30,
    ),
    most=st.integers(1, 8),
)
def test_any_paths_after_any_log_are_held_in_full(steps: list[tuple[str, list[int]]], most: int) -> None:
    """However the branches are taken in turn, what the drafter is asked about is the log and the path, and nothing of
    another; and its last token was just fed."""
    drafter = NgramDrafter(context_tokens=CONTEXT_TOKENS)
    lease, log = DrafterLease(drafter), [0]
    for kind, tokens in steps:
        if kind == "log":
            at = len(log)
            log += tokens
            lease.follow(at, tokens)
            continue
        end = len(log) + len(tokens)
        fed = 0
        while not fed or lease.end < end:
            lease.reach(end)
            lacking = lease.lacks(log, tokens, most)
            assert 1 <= len(lacking) <= most
            lease.feed(lacking)
            fed += len(lacking)
        assert lease.end == end
        assert lease.tokens == [*log, *tokens][lease.start :]
        assert drafter.length == len(lease.tokens)
