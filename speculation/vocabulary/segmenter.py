"""From text to tokens, knowing nothing but what each token spells.

Byte-pair encodings number their tokens in the order in which they were learnt, so "merge the neighbours that make the
token of the lowest id" is what their tokenizers do; no merge list and no tokenizer library is needed. For other kinds
it is a fair guess, and any guess spells the same text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

LONGEST_WORD_BYTES = 24  # scripts without spaces are cut at a character after so many bytes, and so are long spaces
_SPACES = b" \t"
_CACHED_WORDS = 1 << 14


class Segmenter:
    """The tokens of one vocabulary. spellings: what each token spells, by id; empty ones are never used."""

    def __init__(self, spellings: Sequence[bytes]) -> None:
        self.spellings = spellings
        self.ids: dict[bytes, int] = {}
        for token_id, spelling in enumerate(spellings):
            # Of two tokens for one byte the first is the byte as a fallback, the second the character itself.
            if spelling and (len(spelling) == 1 or spelling not in self.ids):
                self.ids[spelling] = token_id
        self.segment = lru_cache(_CACHED_WORDS)(self._segment)

    def tokens(self, text: bytes) -> list[int]:
        """The tokens of a text, word by word."""
        found: list[int] = []
        start = 0
        for end in word_ends(text):
            found += self.segment(text[start:end])
            start = end
        return found

    def _segment(self, word: bytes) -> tuple[int, ...]:
        """The tokens of one word. Bytes that no token spells are left out."""
        if (whole := self.ids.get(word)) is not None:
            return (whole,)
        pieces = [piece for unit in characters(word) for piece in self._units(unit)]
        while True:
            best, at = len(self.spellings), -1
            for i in range(len(pieces) - 1):
                rank = self.ids.get(pieces[i] + pieces[i + 1], best)
                if rank < best:
                    best, at = rank, i
            if at < 0:
                return tuple(self.ids[piece] for piece in pieces)
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]

    def _units(self, character: bytes) -> list[bytes]:
        """What merging begins with: the character if it is a token, else those of its bytes that are."""
        if character in self.ids:
            return [character]
        return [piece for byte in character if (piece := bytes([byte])) in self.ids]


def unfinished(text: bytes) -> int:
    """How many bytes at the end of `text` begin a UTF-8 character that is not complete."""
    for back in range(1, min(3, len(text)) + 1):
        byte = text[-back]
        if byte >= 0xC0:
            return back if back < _length(byte) else 0
        if byte < 0x80:
            return 0
    return 0


def characters(text: bytes) -> Iterator[bytes]:
    """UTF-8 characters; a byte that belongs to none stands alone."""
    at = 0
    while at < len(text):
        end = at + _length(text[at])
        if not all(0x80 <= byte < 0xC0 for byte in text[at + 1 : end]) or end > len(text):
            end = at + 1
        yield text[at:end]
        at = end


def _length(first: int) -> int:
    """Bytes in the character that begins with this byte."""
    return 1 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4 if first < 0xF8 else 1


def word_ends(text: bytes) -> list[int]:
    """Where the words of `text` end. More text never moves an end, except the last.

    A word begins with its spaces, as tokens do, and never inside of a character. Line ends belong to what comes before:
    many vocabularies have tokens such as ".\\n".
    """
    ends = []
    start = 0
    for at in range(1, len(text)):
        if ends_word(text, start, at):
            ends.append(at)
            start = at
    return [*ends, len(text)] if text else ends


def ends_word(text: Sequence[int], start: int, at: int) -> bool:
    """Whether a word that began at `start` ends before the byte at `at` > start."""
    byte = text[at]
    if byte in _SPACES and text[at - 1] not in _SPACES:
        return True
    return at - start >= LONGEST_WORD_BYTES and not 0x80 <= byte < 0xC0
