"""Which tokens of one vocabulary are which of another, and what that makes of a drafter with the one and a target with
the other.

Tokens correspond if they spell the same bytes, whatever their numbers and their tokenizer's way of writing. Special
tokens spell nothing and correspond by name, or by what they are for: all chat formats have an end of a turn.
"""

from __future__ import annotations

from bisect import bisect_right
from enum import Enum
from functools import lru_cache

from speculation.vocabulary.segmenter import Segmenter
from speculation.vocabulary.vocabulary import Vocabulary

# Ends of a turn, in the order of preference where a drafter has several.
END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eot|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end|>",
    "<|end_of_turn|>",
    "<|endofturn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<｜end▁of▁sentence｜>",  # noqa: RUF001 - so it is written
    "</s>",
    "<eos>",
    "<|end_of_text|>",
    "<|endoftext|>",
)
LONGER_TOKENS = 256  # so many of the tokens that begin alike are looked at
NEARLY_ALL = 0.97  # of the target's ordinary tokens: then a table of ids is enough


_CACHED_TOKENS = 1 << 14  # so many of the target's tokens are remembered in the drafter's


class Way(Enum):
    """How a drafter can serve a target."""

    EQUAL = "the same vocabulary"
    RENUMBERED = "the same tokens, up to special ones, padding and order"
    INTERSECTION = "nearly the same tokens"
    TRANSLATED = "another vocabulary, translated by what it spells"
    NONE = "no common ground"


class Correspondence:
    """A drafter's vocabulary seen from a target's."""

    def __init__(self, drafter: Vocabulary, target: Vocabulary) -> None:
        self.drafter, self.target = Segmenter(drafter.spellings), Segmenter(target.spellings)
        self._target = target
        self._special = _special(drafter, target)
        spelled, wanted = self.drafter.ids, self.target.ids
        self.target_of = {token: wanted[spelling] for spelling, token in spelled.items() if spelling in wanted}
        for target_id, drafter_id in self._special.items():
            self.target_of.setdefault(drafter_id, target_id)
        self.shared = sum(spelling in spelled for spelling in wanted)
        self._in_order = sorted(wanted)
        self.drafter_tokens = lru_cache(_CACHED_TOKENS)(self._drafter_tokens)

    def special(self, target_id: int) -> int | None:
        """The drafter's token for a special token of the target's, if it has one."""
        return self._special.get(target_id)

    def spelling(self, target_id: int) -> bytes:
        """What the drafter should read for a target token that has none of its own for it.

        The mark-up of an unknown chat format is at least legible; padding is nothing.
        """
        if target_id >= len(self._target.strings):
            return b""
        if target_id in self._target.special:
            return self._target.strings[target_id].encode("utf-8", "surrogateescape")
        return self._target.spellings[target_id]

    def _drafter_tokens(self, target_id: int) -> tuple[int, ...]:
        """The drafter's tokens for one of the target's."""
        special = self.special(target_id)
        return (special,) if special is not None else tuple(self.drafter.tokens(self.spelling(target_id)))

    def longer(self, text: bytes) -> list[bytes]:
        """Some of the target's tokens that begin with `text` and go on, in alphabetical order."""
        at = bisect_right(self._in_order, text)
        found = self._in_order[at : at + LONGER_TOKENS]
        return [spelling for spelling in found if spelling.startswith(text)]

    def way(self) -> Way:
        """The best way there is, for two vocabularies that are not equal."""
        ordinary = len(self.target.ids)
        if not ordinary:
            return Way.NONE
        if self.shared == ordinary == len(self.drafter.ids):
            return Way.RENUMBERED
        if self.shared >= NEARLY_ALL * ordinary:
            return Way.INTERSECTION
        units = {unit for spelling in self.target.ids for unit in spelling}
        spellable = {unit for unit in units if bytes([unit]) in self.drafter.ids}
        if not all(unit in spellable for unit in range(0x21, 0x7F) if unit in units):
            return Way.NONE
        return Way.TRANSLATED


def _special(drafter: Vocabulary, target: Vocabulary) -> dict[int, int]:
    """From the target's special tokens to the drafter's: by name, else by role; likely ends of a turn first."""
    names = {drafter.strings[token]: token for token in sorted(drafter.special, reverse=True)}
    wanted = {target.strings[token]: token for token in sorted(target.special, reverse=True)}
    found = {token: names[name] for name, token in wanted.items() if name in names}
    if (end := next((names[name] for name in END_OF_TURN if name in names), None)) is not None:
        found |= {wanted[name]: end for name in END_OF_TURN if name in wanted and wanted[name] not in found}
    return found
