"""Guesses that branch, laid out for a step: one trunk, and twigs.

A *run* is a piece of consecutive guesses of which each hangs on the one before it. The first run goes on with the
sequence itself. Every other one is a *twig*: it has pages of its own from the one on in which it leaves its path, and
shares those before. So its rows read the very keys, in the very places, that they would read if nothing else had been
guessed: whatever is bitwise true of a lone line is true of every path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Run(NamedTuple):
    """Guesses first .. last - 1 of a block. parent: the guess that the first hangs on, -1 for the log."""

    first: int
    last: int
    parent: int


def runs_of(parents: Sequence[int]) -> list[Run]:
    """How guesses branch."""
    runs: list[Run] = []
    for index, parent in enumerate(parents):
        if runs and parent == index - 1:
            runs[-1] = runs[-1]._replace(last=index + 1)
        else:
            runs.append(Run(index, index + 1, parent))
    return runs


def depths_of(parents: Sequence[int]) -> list[int]:
    """How many guesses each of them hangs on. Raises ValueError if one hangs on itself or a later one."""
    depths: list[int] = []
    for index, parent in enumerate(parents):
        if not -1 <= parent < index:
            raise ValueError(f"guess {index} cannot hang on guess {parent}")
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
    return depths


def path_to(parents: Sequence[int], guess: int) -> list[int]:
    """The guesses from the log to this one, in order; none for -1."""
    path: list[int] = []
    while guess >= 0:
        path.append(guess)
        guess = parents[guess]
    return path[::-1]


@dataclass(frozen=True)
class Twig:
    """A run that is not the trunk. start: position of its first guess. pages: all that its rows read and write; those
    from index `own` on are its own."""

    run: Run
    start: int
    pages: list[int]
    own: int


@dataclass(frozen=True)
class Branches:
    """How the latest reserved block of a sequence branches. base: position of its first guess. trunk: guesses of the
    first run. guesses: all of them, once they are evaluated."""

    parents: tuple[int, ...]
    base: int
    trunk: int
    twigs: list[Twig]
    guesses: Sequence[int] = ()

    def copies(self, start: int, page_tokens: int) -> list[list[int]]:
        """For each row of the block, where else its keys and values belong: in the twigs' own pages that begin before
        the twigs do.

        start: position of the first row. As page * page_tokens + place in the page.
        """
        before = self.base - start
        places: list[list[int]] = [[] for _ in range(before + len(self.parents))]
        for twig in self.twigs:
            page, guess = twig.pages[twig.own], twig.run.parent
            for position in range(twig.start - 1, max(start, twig.own * page_tokens) - 1, -1):
                row = before + guess if guess >= 0 else position - start
                places[row].append(page * page_tokens + position % page_tokens)
                guess = self.parents[guess] if guess >= 0 else -1
        return places

    def twig_of(self, guess: int) -> Twig | None:
        """The twig that a guess is on; None for the trunk."""
        return next((twig for twig in self.twigs if twig.run.first <= guess < twig.run.last), None)
