"""Whose word a token was first, for the page and the terminal."""

from __future__ import annotations

from outrider.v1 import verifier_pb2 as pb

from edge_client.assistant.ride import _tokens
from edge_client.chat.rendering import BRANCH, CORRECTED, DEVICE, OWN, SERVER, pieces
from edge_client.riding.commit_reader import CommitReader, Ride
from edge_client.types import StreamChunk


def test_a_second_guess_that_was_right_is_told_apart_from_a_first_and_from_a_correction() -> None:
    reader = CommitReader(Ride())
    reader.opened = pb.Opened(prompt_length=10)
    guessed = {10: 3, 11: 4, 12: 5}  # the likeliest at each position
    commit = pb.Commit(start=10, tokens=[3, 7, 8], drafted_mask=0b011, text="abc", text_lengths=[1, 1, 1])
    progress = reader.commit(commit, guessed)
    assert progress is not None
    assert (progress.drafted, progress.corrected) == ([True, True, False], [False, True, False])
    again = reader.commit(pb.Commit(start=13, tokens=[9], text="d", text_lengths=[1]), {13: 2})
    assert again is not None
    chunk = StreamChunk(
        text="abcd",
        token_ids=(*progress.tokens, *again.tokens),
        texts=(*progress.texts, *again.texts),
        drafted=(*progress.drafted, *again.drafted),
        corrected=(*progress.corrected, *again.corrected),
    )
    assert [token["writer"] for token in _tokens(chunk)] == ["device", "branch", "server", "corrected"]
    assert list(pieces(chunk)) == [("a", DEVICE), ("b", BRANCH), ("c", SERVER), ("d", CORRECTED)]


def test_a_guess_of_the_verifiers_own_is_told_apart_from_a_word_without_one() -> None:
    reader = CommitReader(Ride())
    reader.opened = pb.Opened(prompt_length=10)
    commit = pb.Commit(start=10, tokens=[3, 7, 8], drafted_mask=0b001, own_mask=0b110, text="abc", text_lengths=[1] * 3)
    assert reader.commit(pb.Commit(start=10, tokens=[3], drafted_mask=1, text="a"), {}) is not None
    progress = reader.commit(commit, {11: 5})
    assert progress is not None
    chunk = StreamChunk(
        text="bc",
        token_ids=tuple(progress.tokens),
        texts=tuple(progress.texts),
        drafted=tuple(progress.drafted),
        corrected=tuple(progress.corrected),
        own=tuple(progress.own),
    )
    assert [token["writer"] for token in _tokens(chunk)] == ["corrected", "own"]
    assert list(pieces(chunk)) == [("b", CORRECTED), ("c", OWN)]
