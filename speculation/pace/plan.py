"""What a way of riding will cost, told from measured figures: time and target forwards per token.

A *cycle* begins when a step of the verifier has ended a line. The device learns of it, draws a block of n guesses on
the new log and sends it; the block lands ``wait = round trip + n * draft`` after the cycle began. Meanwhile the
verifier waits for its patience, then writes a token of its own (a fill), waits again, and so on; a fill that differs
from the block's guess ends the new line before it has landed. Once the block has landed, the line flows: while a step
runs the device draws on, and the next step takes what has come. The cycle ends with the first wrong guess.

With K right guesses before that one, everything is arithmetic; `Plans` averages it over K, for many plans at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_FILLS = 8
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Conditions:
    """What was measured, in milliseconds. survivals[j]: probability that the first j guesses of a line are right."""

    rtt_ms: float
    step_ms: float
    draft_ms: float
    survivals: Floats


@dataclass(frozen=True, slots=True)
class Plans:
    """Ways of riding and what they cost; entry 0 is the one without patience.

    patience_ms[i]: how long the verifier waits for guesses, 0 if not at all. fills[i]: tokens it writes before a block
    lands. block_tokens[i]: guesses of a block. ms_per_token[i], forwards_per_token[i]: expected.
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


def _forecast(
    now: Conditions, patience_ms: Floats, fills: Floats, lands_ms: Floats, block_tokens: Floats
) -> tuple[Floats, Floats]:
    """Mean milliseconds and forwards per token of cycles whose first block is taken after so many fills."""
    step_ms, survivals = now.step_ms, now.survivals
    right = np.arange(len(survivals), dtype=np.float64)  # K
    probability = survivals - np.append(survivals[1:], 0.0)
    # Guesses per step, and time per step, once the line flows.
    waits = patience_ms > 0
    flow_tokens = np.maximum(np.where(waits, block_tokens, 1.0), step_ms / now.draft_ms)
    flow_ms = np.where(waits, np.maximum(step_ms, flow_tokens * now.draft_ms), step_ms)
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


def survival_curve(at_depth: Sequence[float]) -> Floats:
    """Probabilities that the first 0, 1, 2... guesses are right, from those of each given all before it."""
    return np.asarray(np.cumprod([1.0, *at_depth]), dtype=np.float64)
