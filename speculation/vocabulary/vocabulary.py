"""Do two models mean the same thing by a token id? A vocabulary, its fingerprint, and what its tokens spell.

Two vocabularies are the same when they give the same token string to every id. The strings are those that the
tokenizer's own files hold (a byte-level BPE writes a space as "Ġ"), because tokenizer.json, GGUF and transformers all
keep them in that form. Merges and pre-tokenization are left out: tokens travel between device and verifier, not text.
What a token spells are the bytes it stands for, whatever its tokenizer's way of writing them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

MOST_TOKENS = 1 << 20  # ids a vocabulary may have; the largest that are published have a quarter of that
_LENGTH_BYTES = 4
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer in id order.

    strings: as in its files; empty for an id without a token. special: ids that stand for no text. opening: the token
    that the tokenizer itself puts before every text, if any. added: other tokens that were added to those the tokenizer
    learnt, and are written as plain text.
    """

    strings: tuple[str, ...]
    special: frozenset[int] = frozenset()
    opening: int | None = None
    added: frozenset[int] = frozenset()

    @classmethod
    def of_tokenizer(cls, tokenizer: Mapping[str, Any]) -> Vocabulary:
        """That of a parsed tokenizer.json. Raises ValueError as `token_strings` does."""
        strings = tuple(token_strings(tokenizer))
        learnt = {text for text, _ in _entries(tokenizer["model"])}
        tokens = tokenizer.get("added_tokens") or ()
        special = frozenset(token["id"] for token in tokens if token.get("special"))
        added = frozenset(token["id"] for token in tokens if token["content"] not in learnt)
        return cls(strings, special, _opening(tokenizer, strings), added - special)

    @property
    def fingerprint(self) -> str:
        """See `fingerprint`."""
        return fingerprint(self.strings)

    @cached_property
    def spellings(self) -> tuple[bytes, ...]:
        """The bytes each token stands for; none for special ones.

        Three ways of writing are told apart by their spaces: byte-level BPE ("Ġ", a printable character per byte),
        SentencePiece ("▁", and ``<0x0A>`` for a byte), and plain text. Added tokens of a byte-level BPE are plain text,
        although all their characters may belong to its alphabet, too ("đem").
        """
        spaces = {mark: sum(text.startswith(mark) for text in self.strings) for mark in "Ġ▁"}
        if spaces["▁"] > spaces["Ġ"]:
            spell = _spelled_by_sentencepiece
        elif spaces["Ġ"]:
            spell = _spelled_by_bytes
        else:
            spell = _plain
        plain = self.added if spell is _spelled_by_bytes else frozenset()
        return tuple(
            b"" if i in self.special else _plain(text) if i in plain else spell(text)
            for i, text in enumerate(self.strings)
        )

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return {self.strings[token]: token for token in sorted(self.special, reverse=True)}

    def named(self, texts: Iterable[str]) -> frozenset[int]:
        """The special tokens that are called so. Being no text, they are never found in a text."""
        return frozenset(self._by_name[text] for text in texts if text in self._by_name)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for every byte, turned round: those that print stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in set(printable))
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _plain(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _spelled_by_bytes(text: str) -> bytes:
    try:
        return bytes([_ALPHABET[character] for character in text])
    except KeyError:
        return _plain(text)


def _spelled_by_sentencepiece(text: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(text)
    return bytes([int(byte[1], 16)]) if byte else _plain(text.replace("▁", " "))


def _opening(tokenizer: Mapping[str, Any], strings: Sequence[str]) -> int | None:
    """What the post-processor's template puts before a single text."""
    processor = tokenizer.get("post_processor") or {}
    for one in (processor, *(processor.get("processors") or ())):
        for first in (one.get("single") or ())[:1]:
            name = (first.get("SpecialToken") or {}).get("id")
            if name in strings:
                return strings.index(name)
    return None


def fingerprint(token_strings: Sequence[str]) -> str:
    """SHA-256 over the token strings in id order, as ``"sha256:<64 hex digits>"``.

    Each string goes in as the length of its UTF-8 form (4 bytes, little-endian) and then the form itself, so that no
    two lists share their bytes. Bytes that are no UTF-8 come and go as Python's "surrogateescape".
    """
    digest = hashlib.sha256()
    for text in token_strings:
        encoded = text.encode("utf-8", "surrogateescape")
        digest.update(len(encoded).to_bytes(_LENGTH_BYTES, "little") + encoded)
    return f"sha256:{digest.hexdigest()}"


def token_strings(tokenizer: Mapping[str, Any]) -> list[str]:
    """The token strings of a parsed tokenizer.json in id order.

    The vocabulary is a dict from string to id (BPE, WordPiece, WordLevel) or a list of [string, score] (Unigram); added
    tokens come on top and win where both name an id. An id that nothing names has the empty string. Raises ValueError
    with what is wrong: no vocabulary, an unknown kind of one, or an id that is no number below MOST_TOKENS.
    """
    model = tokenizer.get("model")
    if not isinstance(model, Mapping) or "vocab" not in model:
        raise ValueError("this is no tokenizer.json: it has no model.vocab")
    by_id = {token_id: text for text, token_id in _entries(model)}
    for added in tokenizer.get("added_tokens") or ():
        by_id[added["id"]] = added["content"]
    for token_id in by_id:
        if not (isinstance(token_id, int) and 0 <= token_id < MOST_TOKENS):
            raise ValueError(f"the tokenizer has a token with the id {token_id!r}; ids are numbers below {MOST_TOKENS}")
    return [by_id.get(token_id, "") for token_id in range(max(by_id, default=-1) + 1)]


def _entries(model: Mapping[str, Any]) -> Iterable[tuple[str, int]]:
    vocab = model["vocab"]
    if isinstance(vocab, Mapping):
        return vocab.items()
    if isinstance(vocab, Sequence) and not isinstance(vocab, str):
        return ((piece, token_id) for token_id, (piece, _score) in enumerate(vocab))
    raise ValueError(
        f"a tokenizer model of type {model.get('type')!r} keeps its vocabulary as {type(vocab).__name__}; "
        "expected a dict from token to id (BPE, WordPiece, WordLevel) or a list of [token, score] (Unigram)"
    )
