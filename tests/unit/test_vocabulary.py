"""The fingerprint of a vocabulary, and token strings out of every kind of tokenizer.json."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, trainers
from transformers import AutoTokenizer

from models.demo.data import train_tokenizer
from models.demo.dialogues import DIALOGUES
from speculation.vocabulary.vocabulary import Vocabulary, fingerprint, token_strings

Strings = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=8)


def test_fingerprint_is_what_its_docstring_says() -> None:
    content = b"\x01\x00\x00\x00a" + b"\x02\x00\x00\x00" + "Ġ".encode()
    assert fingerprint(["a", "Ġ"]) == "sha256:" + hashlib.sha256(content).hexdigest()


def test_fingerprint_of_no_tokens() -> None:
    assert fingerprint([]) == "sha256:" + hashlib.sha256(b"").hexdigest()


@given(first=Strings, second=Strings)
def test_fingerprints_are_equal_only_for_equal_lists(first: list[str], second: list[str]) -> None:
    assert (fingerprint(first) == fingerprint(second)) == (first == second)


@given(strings=Strings)
def test_moving_a_character_to_the_next_token_shows(strings: list[str]) -> None:
    assert fingerprint([*strings, "ab", "c"]) != fingerprint([*strings, "a", "bc"])


def test_bytes_that_are_no_utf8_have_a_fingerprint_of_their_own() -> None:
    broken = b"\xff".decode("utf-8", "surrogateescape")
    assert fingerprint([broken]) not in (fingerprint(["\ufffd"]), fingerprint(["ÿ"]), fingerprint([""]))


def test_byte_level_bpe_gives_what_transformers_gives(tmp_path: Path) -> None:
    train_tokenizer(DIALOGUES).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    parsed = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert token_strings(parsed) == tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))


@pytest.mark.parametrize(
    ("model", "trainer"),
    [
        (models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]"])),
        (models.WordLevel(unk_token="[UNK]"), trainers.WordLevelTrainer(vocab_size=60, special_tokens=["[UNK]"])),
        (models.Unigram(), trainers.UnigramTrainer(vocab_size=60, special_tokens=["[UNK]"], unk_token="[UNK]")),
    ],
)
def test_other_tokenizer_models(model: Any, trainer: Any) -> None:
    tokenizer = Tokenizer(model)
    tokenizer.train_from_iterator([message["content"] for d in DIALOGUES for message in d], trainer)
    tokenizer.add_tokens(["<added>"])
    parsed = json.loads(tokenizer.to_str())
    assert token_strings(parsed) == [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]


def bpe(vocab: Any, added: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"model": {"type": "BPE", "vocab": vocab}, "added_tokens": added}


def test_added_tokens_come_on_top() -> None:
    parsed = bpe({"a": 0, "b": 1}, [{"id": 1, "content": "<b>"}, {"id": 2, "content": "<c>"}])
    assert token_strings(parsed) == ["a", "<b>", "<c>"]


def test_ids_without_a_token_have_an_empty_string() -> None:
    assert token_strings(bpe({"a": 0, "c": 2, "e": 4})) == ["a", "", "c", "", "e"]
    assert Vocabulary.of_tokenizer(bpe({"a": 0, "c": 2})).spellings == (b"a", b"", b"c")


@pytest.mark.parametrize("token_id", [-1, 1 << 20, 1 << 60, "3", None])
def test_an_id_that_cannot_be_is_named(token_id: object) -> None:
    with pytest.raises(ValueError, match="ids are numbers below"):
        token_strings(bpe({"a": 0, "b": token_id}))


def test_special_tokens_are_found_by_name() -> None:
    vocabulary = Vocabulary(("a", "<end>", "<end>", "<pad>"), frozenset({1, 2}))
    assert vocabulary.named(["a", "<end>", "<pad>", "", "<en"]) == {1}


@pytest.mark.parametrize("parsed", [{}, {"model": None}, {"model": {"type": "BPE"}}])
def test_no_vocabulary(parsed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no model\.vocab"):
        token_strings(parsed)


def test_an_unknown_kind_of_vocabulary_is_named() -> None:
    with pytest.raises(ValueError, match="type 'Trie' keeps its vocabulary as str"):
        token_strings({"model": {"type": "Trie", "vocab": "abc"}})
