"""Text into tokens from spellings alone: nothing is lost, and the tokens are those of the tokenizer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.demo.data import train_tokenizer
from models.demo.train_vocabularies import train_other_tokenizer
from speculation.vocabulary.segmenter import LONGEST_WORD_BYTES, Segmenter, characters, unfinished, word_ends
from speculation.vocabulary.vocabulary import Vocabulary
from tests.other_vocabularies import DIALOGUES, TEXT, byte_level, sentencepiece

VOCABULARIES = [byte_level, sentencepiece]
Texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@given(text=Texts)
def test_any_text_is_spelled_by_its_tokens(vocabulary: Callable[[], Vocabulary], text: str) -> None:
    segmenter = Segmenter(vocabulary().spellings)
    tokens = segmenter.tokens(text.encode())
    assert b"".join(segmenter.spellings[token] for token in tokens) == text.encode()


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@given(text=st.binary(max_size=40))
def test_so_are_bytes_that_are_no_text(vocabulary: Callable[[], Vocabulary], text: bytes) -> None:
    segmenter = Segmenter(vocabulary().spellings)
    assert b"".join(segmenter.spellings[token] for token in segmenter.tokens(text)) == text


def test_a_byte_level_bpe_is_split_as_its_tokenizer_does() -> None:
    tokenizer = train_tokenizer(DIALOGUES).backend_tokenizer
    segmenter = Segmenter(byte_level().spellings)
    assert segmenter.tokens(TEXT.encode()) == tokenizer.encode(TEXT, add_special_tokens=False).ids


def test_so_is_sentencepiece() -> None:
    tokenizer = train_other_tokenizer(DIALOGUES, 600)
    segmenter = Segmenter(sentencepiece(600).spellings)
    words = "I would like to book a table for two at an Italian restaurant in San Jose"
    assert segmenter.tokens(words.encode()) == tokenizer.encode(words, add_special_tokens=False).ids


def test_bytes_that_no_token_spells_are_left_out() -> None:
    assert Segmenter([b"a", b"b"]).tokens("aéb".encode()) == [0, 1]


@given(text=Texts)
def test_words_are_whole_characters_and_stand_when_more_text_comes(text: str) -> None:
    encoded = text.encode()
    ends = word_ends(encoded)
    for start, end in zip([0, *ends], ends, strict=False):
        encoded[start:end].decode()
        assert end - start <= LONGEST_WORD_BYTES + 3
    for cut in range(len(encoded)):
        assert word_ends(encoded[:cut])[:-1] == [end for end in ends if end < cut][: len(word_ends(encoded[:cut])) - 1]


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), cut=st.integers(0, 32))
def test_unfinished_characters_are_seen(text: str, cut: int) -> None:
    encoded = text.encode()[:cut]
    missing = unfinished(encoded)
    encoded[: len(encoded) - missing].decode()
    assert 0 <= missing <= 3
    assert b"".join(characters(encoded)) == encoded


@pytest.mark.parametrize("text", [b"\x80\x80", b"\xff", b"\xc3\xff", b"\xf8\x80\x80"])
def test_what_can_never_become_a_character_is_not_waited_for(text: bytes) -> None:
    assert unfinished(text) == 0


@pytest.mark.parametrize("space", [b" ", b"\t", b" \t"])
def test_no_word_grows_with_the_text(space: bytes) -> None:
    """What merging costs grows with the square of a word."""
    text = b"a" + space * 500 + b"x" * 500
    ends = word_ends(text)
    assert max(end - start for start, end in zip([0, *ends], ends, strict=False)) <= LONGEST_WORD_BYTES
    segmenter = Segmenter(byte_level().spellings)
    assert b"".join(segmenter.spellings[token] for token in segmenter.tokens(text)) == text
