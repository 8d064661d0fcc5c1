"""How many positions a forward takes before it takes noticeably longer than one of a few: measured, not assumed.

While weights have to be read anyway, further positions are nearly free, on a GPU some hundreds of them; from where
arithmetic takes longer than reading, each costs as much as a token is worth. That is where a step should be full.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from cloud_verifier.engines.base import Block, Sampler, TargetEngine
from speculation.sampling import SamplingParams

FEW, MOST = 8, 4096
GROWTH = 1.5
LONGER = 1.2  # than a forward of a few positions
REPEATS = 3  # of which the shortest counts: whatever else the machine does only makes a forward longer


def free_positions(engine: TargetEngine, clock: Callable[[], float] = time.perf_counter) -> int:
    """The most positions of one forward that takes at most 1.2 times as long as one of 8.

    The engine must have room for a sequence, and nobody else may use it meanwhile. Takes some forwards' time.
    """
    sequence = engine.open()
    sampler = Sampler(SamplingParams(temperature=0.0), seed=0, prompt_length=1)

    def shortest_s(positions: int) -> float:
        times = []
        for _ in range(REPEATS):
            engine.truncate(sequence, 0)
            engine.reserve(sequence, positions)
            tokens = [position % engine.info.vocabulary_size for position in range(positions)]
            began = clock()
            engine.step([Block(sequence, tokens, positions, sampler)])
            times.append(clock() - began)
        return min(times)

    try:
        limit = min(MOST, engine.info.context_limit)
        positions = min(FEW, limit)
        shortest_s(positions)  # the very first forward pays for what is set up once
        allowed_s = LONGER * shortest_s(positions)
        while (more := min(limit, int(positions * GROWTH))) > positions and shortest_s(more) <= allowed_s:
            positions = more
        return positions
    finally:
        engine.close(sequence)
