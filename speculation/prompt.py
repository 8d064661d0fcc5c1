"""What is the same for every tokenizer when a prompt becomes tokens. Tokenizer and template come in as functions."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

from speculation.vocabulary.vocabulary import Vocabulary

Message = Mapping[str, str]
Render = Callable[[Sequence[Message]], str]
Tokenize = Callable[[str], Sequence[int]]

_LETTER = "a"
_SAID = "said"
_LAST_PRIVATE = 0x10FFFD  # characters that nobody uses lie below


def opening_tokens(with_special: Tokenize, bare: Tokenize) -> list[int]:
    """The tokens that a tokenizer puts before every text; those that it puts after one do not belong to a prompt.

    with_special, bare: tokens of a text with and without those.
    """
    whole, text = list(with_special(_LETTER)), list(bare(_LETTER))
    found = (start for start in range(len(whole) - len(text) + 1) if whole[start : start + len(text)] == text)
    return whole[: next(found, 0)]


def turn_end(render: Render, tokenize: Tokenize, vocabulary: Vocabulary) -> int | None:
    """The token with which a chat template ends what the assistant says; None if it has none.

    render: a conversation without the beginning of another turn; it may raise anything.
    """
    try:
        rendered = render([{"role": "user", "content": _LETTER}, {"role": "assistant", "content": _SAID}])
    except Exception:  # templates are programs and raise what they like
        return None
    _, said, after = rendered.rpartition(_SAID)
    for token in tokenize(after) if said else ():
        name = vocabulary.strings[token] if token < len(vocabulary.strings) else ""
        if name.strip() and (token in vocabulary.special or token in vocabulary.added):
            return token
        if token >= len(vocabulary.spellings) or vocabulary.spellings[token].strip():
            return None
    return None


class ControlNames:
    """The names of control tokens, and where they stand in a text that is to be read as mere text."""

    def __init__(self, vocabulary: Vocabulary, ends: Collection[int], template: str) -> None:
        """ends: tokens that end an answer, special or not. template: of chats; added tokens in it count, too."""
        strings = vocabulary.strings
        names = {strings[token] for token in vocabulary.special.union(ends) if token < len(strings)}
        names |= {strings[token] for token in vocabulary.added if strings[token] in template}
        # A name of a single character cannot be told from the character, nor one of spaces from spaces.
        self._names = {name for name in names if len(name) > 1 and not name.isspace()}
        lengths: dict[str, set[int]] = defaultdict(set)
        for name in self._names:
            lengths[name[:2]].add(len(name))
        self._lengths = dict(lengths)

    def pieces(self, render: Render, messages: Sequence[Message]) -> list[str]:
        """A rendered conversation in pieces, to be made into tokens one by one.

        The cuts go through every control token that somebody has written into a message, so that it is text; those of
        the template are whole. Raises what `render` does.
        """
        if not any(self._places(text) for message in messages for text in message.values()):
            return [render(messages)]
        written = set().union(*(text for message in messages for text in message.values()))
        begin, end = itertools.islice((c for c in map(chr, range(_LAST_PRIVATE, 0, -1)) if c not in written), 2)
        marked = [{name: self._marked(text, begin, end) for name, text in message.items()} for message in messages]
        pieces: list[str] = []
        # A template may cut a text, too, and leave a mark alone.
        parts = re.split(f"{begin}([^{begin}{end}]*){end}", render(marked))
        for index, part in enumerate(parts):
            pieces += self._cut(part) if index % 2 else re.split(f"[{begin}{end}]", part)
        return [piece for piece in pieces if piece]

    def _places(self, text: str) -> list[tuple[int, int]]:
        """Where names stand in a text, and where they end: the longest at each place."""
        places = []
        for beginning, lengths in self._lengths.items():
            at = text.find(beginning)
            while at >= 0:
                found = [length for length in lengths if text[at : at + length] in self._names]
                if found:
                    places.append((at, at + max(found)))
                at = text.find(beginning, at + 1)
        return sorted(places)

    def _marked(self, text: str, begin: str, end: str) -> str:
        marked, told = "", 0
        for start, stop in self._places(text):
            if start >= told:
                marked += text[told:start] + begin + text[start:stop] + end
                told = stop
        return marked + text[told:]

    def _cut(self, name: str) -> list[str]:
        """A name, cut so that neither it nor a name within it is whole."""
        cuts = [0, *(start + 1 for start, _ in self._places(name)), len(name)]
        return [name[start:stop] for start, stop in itertools.pairwise(cuts)]
