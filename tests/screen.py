"""A terminal's screen in memory: what programs write, as a person would see it.

It knows the sequences of ECMA-48 and of DEC's VT100 that the chat and its editor send, and no others: what it does not
know it refuses, so that no test passes by its ignorance. Colours are not kept. All characters are one cell wide.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

_SEQUENCE = re.compile(r"\x1b(?:(?P<control>\[\??)(?P<numbers>[\d;]*)(?P<kind>[@-~])|(?P<single>[^\[]))")
_BEGUN = re.compile(r"\x1b(?:\[\??[\d;]*)?")
_WRAP = 7
_UNSEEN_MODES = {1, 12, 25, 2004}  # the cursor's keys, blinking and visibility; pasted text in brackets


class UnknownSequence(ValueError):
    """A program sent something that this screen does not know."""


class Cursor(NamedTuple):
    """From 0. column: past the last one if the next character begins a new row."""

    row: int = 0
    column: int = 0


class Screen:
    """answer: gets what a terminal tells a program that asks where its cursor is."""

    def __init__(self, columns: int, rows: int, answer: Callable[[str], None]) -> None:
        self._answer = answer
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._rest = ""  # the beginning of a sequence
        self._cursor = self._saved = Cursor()
        self._wraps = True
        self._cells: list[list[str]] = []
        self.resize(columns, rows)

    @property
    def display(self) -> list[str]:
        """The rows, without spaces at their ends."""
        return ["".join(row).rstrip() for row in self._cells]

    @property
    def region(self) -> tuple[int, int]:
        """The first and the last row that scroll, from 0."""
        return self._top, self._bottom

    def resize(self, columns: int, rows: int) -> None:
        """Rows below the cursor go first, then those at the top; all rows scroll again. No text is wrapped anew."""
        least = self._cursor.row + 1
        kept = self._cells[: max(rows, least)][-rows:]
        gone = max(0, least - rows)
        self._columns, self._rows = columns, rows
        self._cells = [(row + self._blank())[:columns] for row in kept]
        self._cells += [self._blank() for _ in range(rows - len(kept))]
        self._top, self._bottom = 0, rows - 1  # of the scrolling region
        self._move(self._cursor.row - gone, self._cursor.column)

    def feed(self, data: bytes) -> None:
        """What a program wrote. Raises UnknownSequence."""
        text, at = self._rest + self._decoder.decode(data), 0
        while at < len(text) and not _BEGUN.fullmatch(text, at):
            if text[at] != "\x1b":
                self._put(text[at])
                at += 1
                continue
            found = _SEQUENCE.match(text, at)
            if found is None:
                raise UnknownSequence(repr(text[at:]))
            numbers = [int(number or 0) for number in (found["numbers"] or "").split(";")]
            if not self._obey(found["single"] or found["control"] + found["kind"], numbers):
                raise UnknownSequence(repr(found[0]))
            at = found.end()
        self._rest = text[at:]

    def _blank(self) -> list[str]:
        return [" "] * self._columns

    def _move(self, row: int, column: int) -> None:
        self._cursor = Cursor(min(max(row, 0), self._rows - 1), min(max(column, 0), self._columns - 1))

    def _put(self, character: str) -> None:
        row, column = self._cursor
        match character:
            case "\r":
                self._move(row, 0)
            case "\n":
                self._down()
            case "\b":
                self._move(row, column - 1)
            case "\a":
                pass
            case _:
                if unicodedata.category(character)[0] in "CM" or unicodedata.east_asian_width(character) in "WF":
                    raise UnknownSequence(f"{character!r} is not one cell wide")
                if column == self._columns:
                    self._move(row, 0)
                    self._down()
                    row, column = self._cursor
                self._cells[row][column] = character
                self._cursor = Cursor(row, min(column + 1, self._columns if self._wraps else self._columns - 1))

    def _down(self) -> None:
        """A row down; in the scrolling region's last one all of the region goes up instead."""
        row, column = self._cursor
        if row == self._bottom:
            del self._cells[self._top]
            self._cells.insert(self._bottom, self._blank())
        else:
            self._cursor = Cursor(min(row + 1, self._rows - 1), column)

    def _obey(self, kind: str, numbers: list[int]) -> bool:
        """A sequence; False if it is not known. numbers: 0 where none is said."""
        row, column = self._cursor
        first, many = numbers[0], max(numbers[0], 1)
        match kind:
            case "7":
                self._saved = self._cursor
            case "8":  # one that stood past the last column still does
                self._move(*self._saved)
                self._cursor = self._cursor._replace(column=min(self._saved.column, self._columns))
            case "D":
                self._down()
            case "[A":
                self._move(max(row - many, self._top if row >= self._top else 0), column)
            case "[B":
                self._move(min(row + many, self._bottom if row <= self._bottom else self._rows), column)
            case "[C":
                self._move(row, column + many)
            case "[D":
                self._move(row, column - many)
            case "[H":
                self._move(many - 1, max(numbers[1], 1) - 1 if len(numbers) > 1 else 0)
            case "[J" | "[K" if first in (0, 2):
                self._erase(kind, row if first == 0 else 0, column if first == 0 else 0)
            case "[r":
                self._top, self._bottom = many - 1, (numbers[1] if len(numbers) > 1 else self._rows) - 1
                self._move(0, 0)
            case "[n" if first == 6:
                self._answer(f"\x1b[{row + 1};{min(column, self._columns - 1) + 1}R")
            case "[m":
                pass
            case "[?h" | "[?l" if set(numbers) <= {_WRAP} | _UNSEEN_MODES:
                self._wraps = kind == "[?h" if _WRAP in numbers else self._wraps
            case _:
                return False
        return True

    def _erase(self, kind: str, row: int, column: int) -> None:
        """From there to the end of the row ("[K") or of the screen."""
        if kind == "[K":
            row = self._cursor.row
        self._cells[row][column:] = self._blank()[column:]
        if kind == "[J":
            self._cells[row + 1 :] = [self._blank() for _ in range(self._rows - row - 1)]
