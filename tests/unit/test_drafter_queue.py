"""One drafter, many answers: everybody's turn comes, in order, and nobody keeps what they left."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from edge_client.riding.drafter_queue import DrafterQueue


def test_turns_come_in_order_and_those_who_left_are_passed_over() -> None:
    turns, heard = DrafterQueue(), list[str]()
    assert turns.take("first")
    for who in ("second", "third", "fourth"):
        turns.ask(who, lambda who=who: heard.append(who))  # type: ignore[misc]
    turns.ask("second", lambda: heard.append("second, again"))
    turns.leave("third")
    turns.leave("nobody")
    assert not turns.take("late")
    assert heard == []
    turns.leave("first")
    assert heard == ["second, again"]
    assert turns.take("second"), "it has it already"
    turns.leave("second")
    turns.leave("second")
    assert heard == ["second, again", "fourth"]
    turns.leave("fourth")
    assert not turns.taken


def test_what_is_free_is_had_at_once() -> None:
    turns, heard = DrafterQueue(), list[str]()
    turns.ask("first", lambda: heard.append("first"))
    assert heard == ["first"]
    assert turns.taken


def test_a_turn_may_be_waited_for() -> None:
    turns = DrafterQueue()
    assert turns.take("first")
    with ThreadPoolExecutor(1) as thread:
        had = thread.submit(turns.take, "second", timeout_s=30.0)
        turns.leave("first")
        assert had.result(30.0)
