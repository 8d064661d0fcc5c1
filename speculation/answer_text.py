"""An answer's text as its tokens come, and where a stop string ends it. Nothing here knows a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class TokenStream(Protocol):
    """Turns tokens into text one at a time; text that may still change is held back."""

    def push(self, token: int) -> str:
        """Text that became certain with this token."""

    def rest(self) -> str:
        """Text still held back, such as an unfinished character."""


class AnswerText:
    """The text of an answer as it grows token by token, and whether a stop string has come.

    pieces[i] is what token i made certain; it depends on the tokens up to it and on nothing else, so an answer that is
    continued elsewhere goes on with the same text. Text that could be the beginning of a stop string is held back until
    it is not.
    """

    def __init__(self, stream: TokenStream, stop: Sequence[str]) -> None:
        self._stream = stream
        self._stops = [_Stop(text) for text in stop]
        self._held = ""
        self.pieces: list[str] = []
        self.stopped = False

    def push(self, token: int) -> bool:
        """Take one token; returns whether the answer ends with it because a stop string is complete."""
        new = self._stream.push(token)
        if not self._stops:
            self.pieces.append(new)
            return False
        text, began = self._held + new, len(self._held)
        for at, character in enumerate(new, began + 1):
            # All of them, for the others must hear of every character; of several that end here, the longest.
            ended = max([len(stop.text) for stop in self._stops if stop.goes_on(character)], default=0)
            if ended:
                self.pieces.append(text[: at - ended])
                self._held = ""
                self.stopped = True
                return True
        cut = len(text) - max(stop.matched for stop in self._stops)
        self.pieces.append(text[:cut])
        self._held = text[cut:]
        return False

    def rest(self) -> str:
        """What was held back and belongs to the text after all, once the answer has ended."""
        return "" if self.stopped else self._held + self._stream.rest()


class _Stop:
    """A stop string, and how much of it the text so far ends with (Knuth, Morris and Pratt 1977).

    So a character costs a constant time, however long the string is.
    """

    def __init__(self, text: str) -> None:
        self.text, self.matched = text, 0
        self._shorter = [0, 0]  # by length of a beginning: the longest shorter one that it ends with
        for character in text[1:]:
            self._shorter.append(self._longest(self._shorter[-1], character))

    def goes_on(self, character: str) -> bool:
        """Take a character; returns whether the string is complete."""
        self.matched = self._longest(self.matched, character)
        return self.matched == len(self.text)

    def _longest(self, matched: int, character: str) -> int:
        while matched and self.text[matched] != character:
            matched = self._shorter[matched]
        return matched + (self.text[matched] == character)
