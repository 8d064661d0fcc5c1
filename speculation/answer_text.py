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

    pieces[i] is what token i made certain. Text that could be the beginning of a stop string is held back until it is
    not.
    """

    def __init__(self, stream: TokenStream, stop: Sequence[str]) -> None:
        self._stream, self._stop = stream, tuple(stop)
        self._held = ""
        self.pieces: list[str] = []
        self.stopped = False

    def push(self, token: int) -> bool:
        """Take one token; returns whether the answer ends with it because a stop string is complete."""
        self._held += self._stream.push(token)
        if not self._stop:
            self.pieces.append(self._held)
            self._held = ""
            return False
        hits = [at for at in (self._held.find(s) for s in self._stop) if at >= 0]
        if hits:
            self.pieces.append(self._held[: min(hits)])
            self._held = ""
            self.stopped = True
            return True
        keep = max(_overlap(self._held, s) for s in self._stop)
        cut = len(self._held) - keep
        self.pieces.append(self._held[:cut])
        self._held = self._held[cut:]
        return False

    def rest(self) -> str:
        """What was held back and belongs to the text after all, once the answer has ended."""
        return "" if self.stopped else self._held + self._stream.rest()


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-n:]):
            return n
    return 0
