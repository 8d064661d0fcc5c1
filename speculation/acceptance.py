"""Acceptance: how many of a line's guesses the log takes.

A rule is a pure function of the guesses and of what the target chose. There is one today; rejection sampling with a
truncated draft distribution and trees are to join it behind `Rule`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Rule = Callable[[Sequence[int], Sequence[int]], int]


def shared_noise(guesses: Sequence[int], choices: Sequence[int]) -> int:
    """Number of leading guesses that equal the target's own choices under the shared noise.

    guesses: k tokens of the line. choices: k + 1 tokens; choices[j] is what the target chose given the first j guesses.
    The log takes the accepted guesses and then choices[accepted], so every evaluation yields at least one token. The
    guesses decide only how many tokens that is, never which: the result is a prefix of what the target would have
    written alone.
    """
    if len(choices) != len(guesses) + 1:
        raise ValueError(f"{len(guesses)} guesses need {len(guesses) + 1} choices, got {len(choices)}")
    accepted = 0
    while accepted < len(guesses) and guesses[accepted] == choices[accepted]:
        accepted += 1
    return accepted
