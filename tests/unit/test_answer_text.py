"""Where a stop string ends an answer, and what is told when: a function of the tokens alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from speculation.answer_text import AnswerText


class Whole:
    """Every token is a text."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def push(self, token: int) -> str:
        return self._texts[token]

    def rest(self) -> str:
        return "~"


def answered(texts: Sequence[str], stop: Sequence[str]) -> tuple[str, int, bool]:
    """The text, how many tokens it took, and whether it was stopped."""
    text = AnswerText(Whole(texts), stop)
    for token in range(len(texts)):
        if text.push(token):
            return "".join(text.pieces) + text.rest(), token + 1, True
    return "".join(text.pieces) + text.rest(), len(texts), False


@pytest.mark.parametrize("seed", range(200))
def test_the_text_ends_before_the_stop_string_that_is_complete_first(seed: int) -> None:
    rng = random.Random(seed)
    texts = ["".join(rng.choices("ab", k=rng.randrange(4))) for _ in range(12)]
    stops = ["".join(rng.choices("ab", k=rng.randrange(1, 6))) for _ in range(rng.randrange(4))]
    whole = "".join(texts)
    ends = [(whole.index(stop) + len(stop), -len(stop)) for stop in stops if stop in whole]
    text, count, stopped = answered(texts, stops)
    if not ends:
        assert (text, count, stopped) == (whole + "~", len(texts), False)
        return
    end, size = min(ends)
    assert (text, stopped) == (whole[: end + size], True)
    assert len("".join(texts[: count - 1])) < end <= len("".join(texts[:count]))


def test_what_may_be_a_stop_string_is_held_back_and_no_more() -> None:
    text = AnswerText(Whole(["ab", "a", "b", "c", "aab", "x"]), ["abac", "bd"])
    for token in range(6):
        assert not text.push(token)
    assert text.pieces == ["", "", "ab", "abc", "a", "abx"]


@pytest.mark.parametrize("cut", range(9))
def test_an_answer_that_is_continued_tells_on(cut: int) -> None:
    texts = list("xaabaabx!")
    once = AnswerText(Whole(texts), ["aabb"])
    again = AnswerText(Whole(texts), ["aabb"])
    for token in range(len(texts)):
        once.push(token)
    for token in range(cut):
        again.push(token)
    before = "".join(again.pieces)
    for token in range(cut, len(texts)):
        again.push(token)
    assert again.pieces == once.pieces
    assert before + "".join(again.pieces[cut:]) == "".join(texts)


def test_a_long_stop_string_costs_a_character_no_more_than_a_short_one() -> None:
    """Compared anew with every character, it would take days."""
    count = 100_000
    text, taken, stopped = answered(["a"] * count, ["a" * (count - 1) + "b"])
    assert (len(text), taken, stopped) == (count + 1, count, False)
