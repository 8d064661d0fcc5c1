"""What a way of riding will cost, told from measured figures: time and target forwards per token.

A *cycle* begins when a step of the verifier has ended a line. The device learns of it, draws a block of n guesses on
the new log and sends it; the block lands ``wait = round trip + n * draft`` after the cycle began. Meanwhile the
verifier waits for its patience, then writes a token of its own (a fill), waits again, and so on; a fill that differs
from the block's guess ends the new line before it has landed. Once the block has landed, the line flows: while a step
runs the device draws on, and the next step takes what has come. The cycle ends with the first wrong guess.

With K right guesses before that one, everything is arithmetic; `Plans` averages it over K, for many plans at once.

A block of a tree is drawn where a guess is likeliest to be right, first and second guesses alike: see `tree_curves`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_FILLS = 8
LEAST = 0.01  # an end that is reached less often is not worth a guess
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Conditions:
    """What was measured, in milliseconds. survivals[j]: probability that the first j guesses of a line are right.
    second: probability that the second guess at a place is right, if all before it are; 0 for lines."""

    rtt_ms: float
    step_ms: float
    draft_ms: float
    survivals: Floats
    second: float = 0.0


@dataclass(frozen=True, slots=True)
class Plans:
    """Ways of riding and what they cost; entry 0 is the one without patience.

    patience_ms[i]: how long the verifier waits for guesses, 0 if not at all. fills[i]: tokens it writes before a block
    lands. block_tokens[i]: guesses of a block; of a tree the places where they are drawn. ms_per_token[i],
    forwards_per_token[i]: expected.
    """

    patience_ms: Floats
    fills: Floats
    block_tokens: Floats
    ms_per_token: Floats
    forwards_per_token: Floats

    @classmethod
    def under(cls, now: Conditions, blocks: Sequence[int], margin_ms: float) -> Plans:
        """The plan without patience, and those that wait for blocks of these sizes with fewer fills meanwhile.

        margin_ms: how much later than planned a block may land.
        """
        fills, guesses = _unwaiting(now)
        rows = [(0.0, float(fills), fills * now.step_ms, float(guesses))]
        for block_tokens in blocks:
            wait_ms = now.rtt_ms + block_tokens * now.draft_ms + margin_ms
            rows += [
                ((wait_ms - few * now.step_ms) / (few + 1), float(few), wait_ms, float(block_tokens))
                for few in range(min(MAX_FILLS, block_tokens - 1, int(wait_ms // now.step_ms)) + 1)
            ]
        patience_ms, fill_count, lands_ms, block = np.array(rows).T
        if now.second:
            curves = tree_curves(now, [max(1, int(count)) for count in block])
            ms_per_token, forwards_per_token = _forecast_of_trees(now, patience_ms, fill_count, lands_ms, block, curves)
        else:
            ms_per_token, forwards_per_token = _forecast(now, patience_ms, fill_count, lands_ms, block)
        if not guesses:  # no guess is ever ahead of the log
            ms_per_token[0], forwards_per_token[0] = now.step_ms, 1.0
        return cls(patience_ms, fill_count, block, ms_per_token, forwards_per_token)


def _unwaiting(now: Conditions) -> tuple[int, int]:
    """Fills before, and guesses in, the first block that a verifier which never waits finds ahead of its log.

    Blocks land just before its steps begin. No guesses if it would take more than there are survivals.
    """
    limit = len(now.survivals) - 1
    for fills in range(math.ceil((now.rtt_ms + now.draft_ms) / now.step_ms), limit):
        guesses = int((fills * now.step_ms - now.rtt_ms) / now.draft_ms)
        if guesses > fills:
            return fills, min(guesses, limit)
        if now.draft_ms >= now.step_ms:
            break
    return limit, 0


class Curve(NamedTuple):
    """Of a block. survivals[j]: probability that the log stays for j tokens in it, and in what goes on at its ends as a
    line would. tokens: how many stay in the block itself, the mean. passes: probability that all up to an end is right.
    """

    survivals: Floats
    tokens: float
    passes: float


def tree_curves(now: Conditions, draws: Sequence[int]) -> list[Curve]:
    """For trees that are drawn at so many places, each where a guess is likeliest to be right."""
    survivals, second = now.survivals, now.second
    length = len(survivals)
    first = (survivals[1:] / np.maximum(survivals[:-1], 1e-12)).tolist()  # right at each depth, if all before are
    within, ends = [0.0] * length, [0.0] * length  # probability of guesses, and of ends, at each depth
    within[0] = ends[0] = 1.0
    tips, drawn = [(-1.0, 0)], 0
    found: dict[int, Curve] = {}
    for count in sorted(set(draws)):
        while drawn < count and tips and -tips[0][0] > LEAST:
            negative, depth = heapq.heappop(tips)
            drawn += 1
            ends[depth] += negative
            if depth + 1 < length:
                for chance in (first[depth], min(second, 1.0 - first[depth])):
                    within[depth + 1] -= negative * chance
                    ends[depth + 1] -= negative * chance
                    heapq.heappush(tips, (negative * chance, depth + 1))
        beyond, curve = 0.0, [1.0]
        for depth, right in enumerate(first):
            beyond = (beyond + ends[depth]) * right
            curve.append(min(within[depth + 1] + beyond, curve[depth]))
        found[count] = Curve(np.array(curve), sum(within) - 1.0, min(1.0, max(0.0, sum(ends))))
    return [found[count] for count in draws]


def _forecast(
    now: Conditions, patience_ms: Floats, fills: Floats, lands_ms: Floats, block_tokens: Floats
) -> tuple[Floats, Floats]:
    """Mean milliseconds and forwards per token of cycles whose first block is taken after so many fills."""
    step_ms, survivals = now.step_ms, now.survivals
    right = np.arange(len(survivals), dtype=np.float64)  # K
    probability = survivals - np.append(survivals[1:], 0.0)
    # Guesses per step, and time per step, once the line flows.
    waits = patience_ms > 0
    flow_tokens, flow_ms = _flow(now, waits, block_tokens)
    later_steps = np.ceil(np.maximum(0.0, right - block_tokens[:, None]) / flow_tokens[:, None])
    ended_early = right < fills[:, None]
    time_ms = np.where(
        ended_early,
        (right + 1) * (step_ms + patience_ms)[:, None],
        (lands_ms + step_ms)[:, None] + later_steps * flow_ms[:, None],
    )
    forwards = np.where(ended_early, right + 1, fills[:, None] + 1 + later_steps)
    tokens = float(probability @ (right + 1))
    return time_ms @ probability / tokens, forwards @ probability / tokens


def _forecast_of_trees(
    now: Conditions,
    patience_ms: Floats,
    fills: Floats,
    lands_ms: Floats,
    block_tokens: Floats,
    curves: Sequence[Curve],
) -> tuple[Floats, Floats]:
    """The same for blocks of trees. Where the log passes an end of one, the next step has one as large."""
    survivals = np.array([curve.survivals for curve in curves])
    tokens, passes = np.array([(curve.tokens, curve.passes) for curve in curves]).T
    right = np.arange(survivals.shape[1], dtype=np.float64)  # K
    lives = survivals[np.arange(len(curves)), fills.astype(np.intp)]
    ended_early = np.where(right < fills[:, None], survivals - np.roll(survivals, -1, axis=1), 0.0)
    early_steps = ended_early @ (right + 1)
    later_steps = np.minimum(passes / np.maximum(1.0 - passes, 1e-9), survivals.shape[1] / np.maximum(tokens, 1.0))
    _, flow_ms = _flow(now, patience_ms > 0, block_tokens)
    step_ms, whole = now.step_ms, tokens * (1.0 + later_steps) + 1.0
    time_ms = early_steps * (step_ms + patience_ms) + lives * (lands_ms + step_ms) + later_steps * flow_ms
    return time_ms / whole, (early_steps + lives * (fills + 1) + later_steps) / whole


def _flow(now: Conditions, waits: NDArray[np.bool_], block_tokens: Floats) -> tuple[Floats, Floats]:
    """Guesses per step, and time per step, once a line flows."""
    tokens = np.maximum(np.where(waits, block_tokens, 1.0), now.step_ms / now.draft_ms)
    return tokens, np.where(waits, np.maximum(now.step_ms, tokens * now.draft_ms), now.step_ms)


def survival_curve(at_depth: Sequence[float]) -> Floats:
    """Probabilities that the first 0, 1, 2... guesses are right, from those of each given all before it."""
    return np.asarray(np.cumprod([1.0, *at_depth]), dtype=np.float64)
