"""Which token of a commit brought which text."""

from __future__ import annotations

import pytest
from outrider.v1 import verifier_pb2 as pb

from edge_client.riding.token_texts import texts_of


@pytest.mark.parametrize(
    ("text", "lengths", "texts"),
    [
        ("a bé", (1, 1, 3), ["a", " ", "bé"]),
        ("ab", (1, 0, 1), ["a", "", "b"]),
        ("abc", (), ["abc", "", ""]),  # a verifier that does not tell
        ("abc", (1, 1), ["abc", "", ""]),
        ("abc", (1, 1, 2), ["abc", "", ""]),
        ("aé", (1, 1, 1), ["aé", "", ""]),  # ends within a character
    ],
)
def test_text_is_laid_to_the_tokens_that_brought_it(text: str, lengths: tuple[int, ...], texts: list[str]) -> None:
    assert texts_of(pb.Commit(tokens=[5, 6, 7], text=text, text_lengths=lengths)) == texts


def test_a_single_tokens_text_needs_no_length() -> None:
    assert texts_of(pb.Commit(tokens=[5], text="hello")) == ["hello"]
    assert texts_of(pb.Commit()) == []
