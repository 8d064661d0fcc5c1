"""Acceptance: which of a draft's guesses the log takes.

A rule is a pure function of the guesses and of what the target chose. There is one today; rejection sampling with a
truncated draft distribution is to join it behind `Rule`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Rule = Callable[[Sequence[int], Sequence[int], Sequence[int]], list[int]]


def shared_noise(guesses: Sequence[int], choices: Sequence[int], parents: Sequence[int] = ()) -> list[int]:
    """The guesses that equal the target's own choices under the shared noise, as a path: their indices in order.

    guesses: k tokens. parents[i]: index of the guess that guess i hangs on, less than i; -1 for the log. Empty: each
    hangs on the one before it. choices: k + 1 tokens: what the target chose after the log, and then after each guess
    and all that it hangs on.

    The log takes the accepted guesses and then the choice after the last of them, so every evaluation yields at least
    one token. The guesses decide only how many tokens that is, never which: the result is a prefix of what the target
    would have written alone, whatever else was guessed.
    """
    if len(choices) != len(guesses) + 1:
        raise ValueError(f"{len(guesses)} guesses need {len(guesses) + 1} choices, got {len(choices)}")
    accepted: list[int] = []
    at = -1
    for index, token in enumerate(guesses):
        parent = parents[index] if parents else index - 1
        if parent == at and token == choices[at + 1]:
            accepted.append(index)
            at = index
    return accepted
