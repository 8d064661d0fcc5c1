"""A drafter of another vocabulary, made to speak the target's tokens by way of what tokens spell.

The wrapper holds the target's tokens, the model its own tokens of the same text, cut into words so that a word's tokens
depend on nothing but the word: whatever was fed and rolled back before, the model reads the same. An unfinished
character is held back until the rest of its bytes have come.

What comes next is asked as a question about text: how likely is each continuation, given that the text so far is
settled but the model's way of splitting its last word is not? If the target has written " rest" and the model has a
token " restaurant", then the place to look is before that word, among the tokens that begin with " rest". So the last
word is read token by token, and at each of its boundaries the candidates that spell the rest of it and more are
counted with their probability (what others call token healing). Continuations become target tokens as the target's
own tokenizer would split them; those of one target token are summed. Where the model's tokens are the shorter ones,
its best guess is followed for a few tokens more, which costs nothing if the guess is right: they are drafted already.

Guesses are drawn among the target's ids by the caller, so shared noise works as with a drafter of the same vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from edge_client.drafters.base import Candidates, Drafter
from edge_client.drafters.vocabulary.wrapper import NOTHING, VocabularyWrapper
from speculation.vocabulary.correspondence import Correspondence
from speculation.vocabulary.segmenter import ends_word, unfinished, word_ends
from speculation.vocabulary.vocabulary import Vocabulary

NEGLIGIBLE = 0.1  # the model's own split is not looked into if it is so much less likely than its alternatives
UNSEEN = 0.5  # a token that is not among them counts as this share of the least likely one
IGNORED = 1e-3  # candidates less likely than this are left out: they cost time and win next to nothing
_AT_LEAST = 8  # candidates are looked at, however unlikely
KEPT_ROWS = 256  # so many of the model's answers are remembered
CACHED_TEXTS = 1 << 13  # so many answers about the text are remembered, of each kind
FOLLOW_TOKENS = 3  # most tokens that a guess is followed beyond the text
FOLLOW_SHARE = 0.5  # of all continuations' probability: less likely guesses are not followed


_Likely = tuple[int, float, bytes]  # a token of the model's, its probability, and what it spells


class _Leaf(NamedTuple):
    """A continuation of the text.

    base, path: the model's tokens of it are the first `base` of the text's and then these. text: what they spell beyond
    the text. token: the first target token of that. mass: its probability. closed: whatever follows, it begins so.
    """

    base: int
    path: tuple[int, ...]
    text: bytes
    token: int
    mass: float
    closed: bool = False


class TranslatedDrafter(VocabularyWrapper):
    """Target tokens outside, the model's tokens of the same text inside."""

    def __init__(
        self, inner: Drafter, target: Vocabulary, size: int, tokens: Correspondence, opening: int | None = None
    ) -> None:
        """opening: the model's token before every text."""
        self._common, self._opening = tokens, opening
        self._spelled, self._written = tokens.drafter.spellings, tokens.target.spellings
        self._text: list[int] = []  # bytes, and -1 - id for a special token of the model's
        self._ends: list[int] = []  # length of the text after each target token
        self._starts: list[int] = []  # of each word in the text
        self._before: list[int] = []  # how many of `_wanted` stand before each word
        self._wanted: list[int] = []  # the text in the model's tokens
        self._pending = 0  # bytes at the end of the text that begin a character and are not in `_wanted`
        self._held: list[int] = []  # what the model holds, which may go on past `_wanted` or differ from it
        self._rows: dict[int, list[_Likely]] = {}  # what may follow so many of the held tokens, where known
        self._agreed = 0  # so many of `_held` are known to be those of `_wanted`
        self._first_token = lru_cache(CACHED_TEXTS)(self._find_first_token)
        self._has_longer = lru_cache(CACHED_TEXTS)(self._find_longer)
        super().__init__(inner, target, size)

    # --- the text and its words --------------------------------------------------------------------------------------

    def _append(self, tokens: Sequence[int]) -> None:
        if self._inner.length != len(self._held):  # it served someone else
            self._inner.rollback(0)
            self._held, self._rows, self._agreed = [], {}, 0
        for token in tokens:
            special = self._common.special(token)
            self._text.extend(self._common.spelling(token) if special is None else (-1 - special,))
            self._ends.append(len(self._text))
        self._cut_words()
        if self._before and self._before[-1] <= self._inner.info.context_tokens:
            self._hold(self._before[-1])

    def _cut(self, length: int) -> None:
        del self._ends[length:]
        del self._text[self._ends[-1] if self._ends else 0 :]
        self._cut_words()

    def _cut_words(self) -> None:
        """Bring words and wanted tokens up to date with the text, from the last word on: the others stand."""
        text, starts = self._text, self._starts
        while starts and starts[-1] >= len(text):
            starts.pop()
            self._before.pop()
        start = starts.pop() if starts else 0
        del self._wanted[self._before.pop() if self._before else 0 :]
        self._agreed = min(self._agreed, len(self._wanted))
        self._pending = 0
        if not text:
            return
        if start == 0 and self._opening is not None and text[0] != -1 - self._opening:
            self._wanted[:] = [self._opening]
            self._agreed = 0
        for at in range(start + 1, len(text) + 1):
            if at == len(text) or text[at] < 0 or text[at - 1] < 0 or ends_word(text, start, at):
                starts.append(start)
                self._before.append(len(self._wanted))
                self._wanted += self._tokens_of(start, at)
                start = at

    def _tokens_of(self, start: int, end: int) -> tuple[int, ...]:
        if self._text[start] < 0:
            return (-1 - self._text[start],)
        word = bytes(self._text[start:end])
        if end == len(self._text):
            self._pending = unfinished(word)
            word = word[: len(word) - self._pending]
        return self._common.drafter.segment(word)

    # --- the model ---------------------------------------------------------------------------------------------------

    def _agreement(self, base: int, path: Sequence[int]) -> int:
        """How many of the first `base` wanted tokens and then `path` the model holds."""
        wanted, held = self._wanted, self._held
        limit = min(base, len(held))
        agreed = min(self._agreed, limit)
        while agreed < limit and held[agreed] == wanted[agreed]:
            agreed += 1
        self._agreed = max(self._agreed, agreed)
        while base <= agreed < min(len(held), base + len(path)) and held[agreed] == path[agreed - base]:
            agreed += 1
        return agreed

    def _hold(self, base: int, path: Sequence[int] = (), *, again: bool = False) -> None:
        """See that the model holds these tokens. again: evaluate the last of them in any case."""
        count = base + len(path)
        keep = min(self._agreement(base, path), count - again)
        if keep >= count:
            return
        if keep < len(self._held):
            self._inner.rollback(keep)
            for stale in range(keep + 1, len(self._held) + 1):
                self._rows.pop(stale, None)
            del self._held[keep:]
            self._agreed = min(self._agreed, keep)
        lacking = [*self._wanted[keep:base], *path[max(0, keep - base) :]]
        self._inner.feed(lacking)
        self._held += lacking
        if len(self._rows) >= KEPT_ROWS:  # nobody rolls back so far in one answer
            self._rows = {at: row for at, row in self._rows.items() if at > count - KEPT_ROWS // 2}
        self._rows[count] = self._likely(self._inner.candidates())

    def _row(self, base: int, path: Sequence[int] = ()) -> list[_Likely]:
        """What may follow these tokens, of which there is at least one."""
        self._hold(base, path)
        if base + len(path) not in self._rows:
            self._hold(base, path, again=True)
        return self._rows[base + len(path)]

    def _likely(self, found: Candidates) -> list[_Likely]:
        """The candidates worth a look."""
        probs = np.exp(found.log_probs)
        count = max(_AT_LEAST, int((probs >= IGNORED).sum()))
        ids, spelled = found.ids[:count].tolist(), self._spelled
        texts = [spelled[token] if token < len(spelled) else b"" for token in ids]
        return list(zip(ids, probs[:count].tolist(), texts, strict=True))

    # --- what comes next ---------------------------------------------------------------------------------------------

    def _ask(self) -> Candidates:
        if not self._starts or not 0 < len(self._wanted) <= self._inner.info.context_tokens:
            return NOTHING  # also when the model would need more of its own tokens than it can hold
        leaves, whole = self._leaves()
        leaves = self._followed(leaves, whole)
        masses: dict[int, float] = {}
        for leaf in leaves:
            if leaf.mass > 0.0:
                masses[leaf.token] = masses.get(leaf.token, 0.0) + leaf.mass
        if not masses:
            return NOTHING
        ids = sorted(masses, key=lambda token: (-masses[token], token))
        log_probs = np.array([math.log(masses[token] / whole) for token in ids])
        return Candidates(np.array(ids, dtype=np.int64), log_probs)

    def _leaves(self) -> tuple[list[_Leaf], float]:
        """Continuations of the text by one token of the model's, and the probability of all of them together."""
        first, count = self._before[-1], len(self._wanted)
        rest = self._last_word()
        before = self._last_token()
        leaves: list[_Leaf] = []
        weight, longer = 1.0, 0.0
        for at in range(first, count) if rest is not None else ():
            own = self._wanted[at]
            assert rest is not None
            if at > 0:
                own_prob, likely = 0.0, self._row(at)
                for token, prob, spelled in likely:
                    if token == own:
                        own_prob = prob
                    elif len(spelled) > len(rest) and spelled.startswith(rest):
                        leaf = self._leaf(at, (token,), spelled[len(rest) :], weight * prob, before)
                        if leaf is not None:
                            leaves.append(leaf)
                            longer += leaf.mass
                weight *= own_prob or (UNSEEN * likely[-1][1] if likely else IGNORED)
                if weight <= NEGLIGIBLE * longer:
                    return leaves, longer + weight
            rest = rest[len(self._spelled[own]) :]
        pending = bytes(self._text[len(self._text) - self._pending :])
        specials = self._common.target_of
        for token, prob, spelled in self._row(count):
            if spelled:
                if not self._pending or (len(spelled) > self._pending and spelled.startswith(pending)):
                    leaf = self._leaf(count, (token,), spelled[self._pending :], weight * prob, before)
                    if leaf is not None:
                        leaves.append(leaf)
            elif (
                (special := specials.get(token, -1)) >= 0 and not self._pending and special < self.info.vocabulary_size
            ):
                leaves.append(_Leaf(count, (token,), b"", special, weight * prob, closed=True))
        return leaves, longer + weight

    def _last_word(self) -> bytes | None:
        """The bytes of the last word; None for a special token, or if the model cannot spell all of it."""
        start = self._starts[-1]
        if self._text[start] < 0:
            return None
        word = bytes(self._text[start:])
        spelled = sum(len(self._spelled[token]) for token in self._wanted[self._before[-1] :])
        return word if spelled == len(word) - self._pending else None

    def _last_token(self) -> bytes:
        """What the last target token spells; nothing if it is special."""
        last = len(self._ends) - 1
        symbols = self._text[self._ends[last - 1] if last else 0 :]
        return bytes(symbols) if symbols and symbols[0] >= 0 else b""

    def _leaf(self, base: int, path: tuple[int, ...], text: bytes, mass: float, before: bytes) -> _Leaf | None:
        """None if the target would not go on like this: it has one token for the last one and the next together."""
        token = self._first_token(text)
        if token < 0 or (before and before + self._written[token] in self._common.target.ids):
            return None
        return _Leaf(base, path, text, token, mass)

    def _find_first_token(self, text: bytes) -> int:
        """The first token of a text as the target would split it; -1 if it cannot write this."""
        ends = word_ends(text)
        split = self._common.target.segment(text[: ends[0]]) if ends else ()
        token = split[0] if split and split[0] < self.info.vocabulary_size else -1
        return token if token >= 0 and text.startswith(self._written[token]) else -1

    def _followed(self, leaves: list[_Leaf], whole: float) -> list[_Leaf]:
        """Put what follows in place of the best leaf, for as long as that decides how the target would split it."""
        before = self._last_token()
        for _ in range(FOLLOW_TOKENS):
            best = max(leaves, key=lambda leaf: leaf.mass, default=None)
            if best is None or best.mass < FOLLOW_SHARE * whole or not self._is_open(best):
                break
            if best.base + len(best.path) >= self._inner.info.context_tokens:
                break
            row = self._row(best.base, best.path)
            leaves = [leaf for leaf in leaves if leaf is not best]
            for token, prob, spelled in row:
                leaf = self._leaf(best.base, (*best.path, token), best.text + spelled, best.mass * prob, before)
                if leaf is not None:
                    leaves.append(leaf if spelled else leaf._replace(closed=True))
        return leaves

    def _is_open(self, leaf: _Leaf) -> bool:
        """Whether a longer target token may begin with this leaf, which the model would write beginning like it."""
        if leaf.closed:
            return False
        spelled = b"".join(self._spelled[token] for token in leaf.path)
        known = spelled[: len(spelled) - len(leaf.text)]  # of the text, which the path spells again
        return self._has_longer(known, leaf.text, leaf.path)

    def _find_longer(self, known: bytes, text: bytes, path: tuple[int, ...]) -> bool:
        segment, own = self._common.drafter.segment, self._common.drafter.ids
        return any(
            known + longer not in own and segment(known + longer)[: len(path)] == path
            for longer in self._common.longer(text)
        )
