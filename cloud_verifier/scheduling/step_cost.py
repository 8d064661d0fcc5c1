"""How many positions a forward takes before it takes noticeably longer than one of a few: measured, not assumed.

While weights have to be read anyway, further positions are nearly free, on a GPU some hundreds of them; from where
arithmetic takes longer than reading, each costs as much as a token is worth. That is where a step should be full.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from functools import partial

from cloud_verifier.engines.base import Block, Sampler, SequenceId, TargetEngine
from cloud_verifier.engines.self_scheduling import Engine, SelfSchedulingEngine, Turn
from speculation.sampling import SamplingParams

FEW, MOST = 8, 4096
GROWTH = 1.5
LONGER = 1.2  # than a forward of a few positions
REPEATS = 3  # of which the shortest counts: whatever else the machine does only makes a forward longer


SAMPLER = Sampler(SamplingParams(temperature=0.0), seed=0, prompt_length=1)


def free_positions(engine: Engine, clock: Callable[[], float] = time.perf_counter) -> int:
    """The most positions of one forward that takes at most 1.2 times as long as one of 8.

    The engine must have room for a sequence, and nobody else may use it meanwhile. Takes some forwards' time.
    """
    vocabulary_size, limit = engine.info.vocabulary_size, engine.info.context_limit

    def forwards_s(forward_s: Callable[[list[int]], float], positions: int) -> Iterator[float]:
        tokens = [position % vocabulary_size for position in range(positions)]
        return (forward_s(tokens) for _ in range(REPEATS))

    if isinstance(engine, SelfSchedulingEngine):
        return _free(partial(forwards_s, partial(_prompt_s, engine, clock)), limit - 1)
    sequence = engine.open()
    try:
        return _free(partial(forwards_s, partial(_block_s, engine, sequence, clock)), limit)
    finally:
        engine.close(sequence)


def _free(forwards_s: Callable[[int], Iterator[float]], limit: int) -> int:
    most = min(MOST, limit)
    positions = min(FEW, most)
    next(forwards_s(positions))  # the very first forward pays for what is set up once
    allowed_s = LONGER * min(forwards_s(positions))
    while (more := min(most, int(positions * GROWTH))) > positions:
        if not any(took_s <= allowed_s for took_s in forwards_s(more)):  # one that is short enough tells
            break
        positions = more
    return positions


def _block_s(engine: TargetEngine, sequence: SequenceId, clock: Callable[[], float], tokens: list[int]) -> float:
    """Of a forward that chooses after every token."""
    engine.truncate(sequence, 0)
    engine.reserve(sequence, len(tokens))
    began = clock()
    engine.step([Block(sequence, tokens, len(tokens), SAMPLER)])
    return clock() - began


def _prompt_s(engine: SelfSchedulingEngine, clock: Callable[[], float], tokens: list[int]) -> float:
    """Until the first token after a prompt: one that is read in several steps counts with all of them."""
    sequence = engine.open(tokens, SAMPLER, secrets.token_hex())  # nothing of it is there already
    try:
        began = clock()
        while not engine.step([Turn(sequence)])[0].tokens:
            pass
        return clock() - began
    finally:
        engine.close(sequence)
