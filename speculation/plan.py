"""What a way of riding will cost, told from measured figures: time and target forwards per token.

A *cycle* begins when a step of the verifier has ended a line. The device learns of it, draws a block of n guesses on
the new log and sends it; the block lands ``wait = round trip + n * draft`` after the cycle began. Meanwhile the
verifier waits for its patience, then writes a token of its own (a fill), waits again, and so on; a fill that differs
from the block's guess ends the new line before it has landed. Once the block has landed, the line flows: while a step
runs the device draws on, and the next step takes what has come. The cycle ends with the first wrong guess.

With K right guesses before that one, everything is arithmetic; `forecast` averages it over K.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_FILLS = 8


@dataclass(frozen=True, slots=True)
class Conditions:
    """What was measured, in milliseconds. survivals[j]: probability that the first j guesses of a line are right."""

    rtt_ms: float
    step_ms: float
    draft_ms: float
    survivals: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Plan:
    """A way of riding and what it costs.

    patience_ms: how long the verifier waits for guesses, 0 if not at all. fills: tokens it writes before a block lands.
    block_tokens: guesses of a block.
    """

    patience_ms: float
    fills: int
    block_tokens: int
    ms_per_token: float
    forwards_per_token: float


def plans(now: Conditions, blocks: Sequence[int], margin_ms: float) -> list[Plan]:
    """The plan without patience first, then those that wait for a block, by its size and the number of fills meanwhile.

    blocks: sizes to consider, in guesses. margin_ms: how much later than planned a block may land.
    """
    found = [_unwaiting(now)]
    for block_tokens in blocks:
        wait_ms = now.rtt_ms + block_tokens * now.draft_ms + margin_ms
        for fills in range(min(MAX_FILLS, block_tokens - 1, int(wait_ms // now.step_ms)) + 1):
            patience_ms = (wait_ms - fills * now.step_ms) / (fills + 1)
            found.append(forecast(now, patience_ms, fills, wait_ms, block_tokens))
    return found


def _unwaiting(now: Conditions) -> Plan:
    """Of a verifier that never waits, with blocks that land just before its steps begin."""
    limit = len(now.survivals) - 1
    fills, guesses = math.ceil((now.rtt_ms + now.draft_ms) / now.step_ms), 0
    while fills < limit:
        guesses = int((fills * now.step_ms - now.rtt_ms) / now.draft_ms)
        if guesses > fills:
            return forecast(now, 0.0, fills, fills * now.step_ms, min(guesses, limit))
        if now.draft_ms >= now.step_ms:
            break
        fills += 1
    return Plan(0.0, limit, 1, now.step_ms, 1.0)  # no guess is ever ahead of the log


def forecast(now: Conditions, patience_ms: float, fills: int, lands_ms: float, block_tokens: int) -> Plan:
    """The mean cost per token of cycles whose first block of block_tokens guesses is taken after `fills` fills."""
    step_ms, survivals = now.step_ms, now.survivals
    right = np.arange(len(survivals))  # K
    probability = survivals - np.append(survivals[1:], 0.0)
    ended_early = right < fills
    # Guesses per step, and time per step, once the line flows.
    flow_tokens = max(block_tokens if patience_ms else 1.0, step_ms / now.draft_ms)
    flow_ms = max(step_ms, flow_tokens * now.draft_ms if patience_ms else step_ms)
    later_steps = np.ceil(np.maximum(0, right - block_tokens) / flow_tokens)
    time_ms = np.where(ended_early, (right + 1) * (step_ms + patience_ms), lands_ms + step_ms + later_steps * flow_ms)
    forwards = np.where(ended_early, right + 1, fills + 1 + later_steps)
    tokens = float(probability @ (right + 1))
    return Plan(
        patience_ms, fills, block_tokens, float(probability @ time_ms) / tokens, float(probability @ forwards) / tokens
    )


def survival_curve(at_depth: Sequence[float]) -> NDArray[np.float64]:
    """Probabilities that the first 0, 1, 2... guesses are right, from those of each given all before it."""
    return np.asarray(np.cumprod([1.0, *at_depth]), dtype=np.float64)
