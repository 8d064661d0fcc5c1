"""The most sessions that are held, by trial."""

from __future__ import annotations

from collections.abc import Callable

GROWTH = 1.25


def most_held(held: Callable[[int], bool], guess: int, most: int, resolution: float = 0.04) -> int:
    """The largest number of sessions up to `most` that is held, to within this share of it; 0 if not even one is.

    Widens from the guess until one number is held and a larger one is not, then halves. Takes `held` to fall once:
    where it wavers, the answer is one of the numbers between which it did.
    """
    good, bad = 0, most + 1
    number = max(1, min(guess, most))
    while bad - good > max(1, int(resolution * good)):
        if held(number):
            good = number
            wider = int(number * GROWTH)
        else:
            bad = number
            wider = int(number / GROWTH)
        bracketed = good > 0 and bad <= most
        number = (good + bad) // 2 if bracketed else wider
        number = max(good + 1, min(number, bad - 1))
    return good
