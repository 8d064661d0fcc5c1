"""Who gets how much of a step: a forward takes so many positions and no more, and prompts a part of its own.

Pure: it knows nothing of sessions, engines or time. The simulator runs the very same code.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Want:
    """What one session could use of a step.

    pending: tokens of its log that the engine has not evaluated, at least one; more than one is a prompt being read.
    guesses: how many follow them. survivals(): of each guess the probability that it and all it hangs on are right,
    the greatest first; only asked for where there is not room for all.
    """

    pending: int
    guesses: int
    survivals: Callable[[], Sequence[float]]


def allocate(wants: Sequence[Want], room: int, chunk: int) -> list[int]:
    """Positions for each of the wants; `wants` come longest waiting first.

    Of `room` everybody gets one position, as far as it reaches: so nobody waits longer than it takes to serve those
    that waited longer. What is left of it goes to guesses by survival: each is worth that many tokens. Survival falls
    along every path of a tree, so the likeliest guesses of all trees together are a tree again in each (OPT-Tree,
    2406.17276).

    Prompts are read besides, `chunk` positions of all of them together: a step is longer by that and no more, however
    many come at once. They share it evenly, except that nobody gets more than there is to read.
    """
    served = min(room, len(wants))
    given = [1] * served + [0] * (len(wants) - served)
    readers = sorted((want.pending - 1, index) for index, want in enumerate(wants[:served]) if want.pending > 1)
    for number, (tokens, index) in enumerate(readers):
        more = min(tokens, chunk // (len(readers) - number))
        given[index] += more
        chunk -= more
    left = room - served
    lines = [want.guesses if more == want.pending else 0 for want, more in zip(wants, given, strict=True)]
    if sum(lines) <= left:
        return [tokens + guesses for tokens, guesses in zip(given, lines, strict=True)]
    # The likeliest that are left of each, by survival and then by who has waited longest.
    survivals = {index: want.survivals() for index, want in enumerate(wants) if lines[index]}
    heads = [(-found[0], index) for index, found in survivals.items()]
    heapq.heapify(heads)
    while left and heads:
        _, index = heads[0]
        given[index] += 1
        left -= 1
        taken = given[index] - wants[index].pending
        if taken < lines[index]:
            heapq.heapreplace(heads, (-survivals[index][taken], index))
        else:
            heapq.heappop(heads)
    return given
