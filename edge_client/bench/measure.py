"""How fast is a drafter on this device, alone? Measurements that say whether drafting can pay: `edge-client bench`.

Nothing here knows a verifier. A drafter is measured through its contract, so everything that the product adds to its
runtime is in the figures; `bare` measures the same model without the product.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_client.drafters.base import Drafter

PREFILL_TOKENS = 512
CONTEXTS = (64, 256, 1024, 4096)
BLOCK_TOKENS = 8
_REPEATED_TOKENS = 200  # ids of a prompt: the lowest are special in many vocabularies, all have this many more
_FIRST_ID = 10
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class AtContext:
    """What a token costs when the drafter holds context_tokens: medians over single tokens, in ms.

    block_ms: for BLOCK_TOKENS tokens fed at once. rollback_ms: to take a block back, and what the token after that
    costs beyond any other.
    """

    context_tokens: int
    token_ms: float
    block_ms: float
    rollback_ms: float


@dataclass(frozen=True)
class Measurements:
    """notices: what a person should know, such as an accelerator that was missing.

    load_ms: from the call until the drafter can be fed. memory_bytes: by which loading and use raised the largest
    resident size of the process; None where the system does not tell."""

    drafter: str
    runs_on: str
    load_ms: float
    prefill_tokens_per_s: float
    contexts: tuple[AtContext, ...]
    memory_bytes: int | None
    notices: tuple[str, ...] = ()


def measure(load: Callable[[], Drafter], *, tokens: int = 48) -> Measurements:
    """Load a drafter and measure it; tokens: how many single ones per context. Raises DrafterError."""
    before_bytes = peak_bytes()
    began_s = time.perf_counter()
    drafter = load()
    load_ms = (time.perf_counter() - began_s) * 1e3
    try:
        drafter.adopt_vocabulary("", drafter.info.vocabulary_size)
        drafter.feed(prompt(8))  # what a runtime does at its first evaluation belongs to nobody
        drafter.candidates()
        room = drafter.info.context_tokens
        prefill = prompt(min(PREFILL_TOKENS, room // 2))
        rates = []
        for _ in range(3):
            drafter.rollback(0)
            began_s = time.perf_counter()
            drafter.feed(prefill)
            drafter.candidates()
            rates.append(len(prefill) / (time.perf_counter() - began_s))
        contexts = contexts_within(room, tokens)
        at = tuple(_at_context(drafter, context, tokens) for context in contexts)
        after_bytes = peak_bytes()
        memory_bytes = None if before_bytes is None or after_bytes is None else after_bytes - before_bytes
        info = drafter.info
        rate = statistics.median(rates)
        return Measurements(info.name, info.runs_on, load_ms, rate, at, memory_bytes, info.notices)
    finally:
        drafter.close()


def contexts_within(room: int, tokens: int) -> list[int]:
    """The contexts to measure at: as many of CONTEXTS as leave room for the tokens."""
    return [context for context in CONTEXTS if context + tokens + BLOCK_TOKENS <= room] or [1]


def prompt(count: int) -> list[int]:
    """Token ids to hold; they mean nothing, and no evaluation takes longer or shorter for that."""
    return [_FIRST_ID + (i * 7919) % _REPEATED_TOKENS for i in range(count)]


def _at_context(drafter: Drafter, context: int, tokens: int) -> AtContext:
    hold(drafter, context)
    single = timed_ms([lambda: _step(drafter)] * tokens)
    hold(drafter, context)
    block = prompt(BLOCK_TOKENS)
    blocks, back = [], []
    for _ in range(max(3, tokens // BLOCK_TOKENS)):
        blocks.append(timed_ms([lambda: _feed(drafter, block)]))
        back.append(timed_ms([lambda: drafter.rollback(context)]) + timed_ms([lambda: _feed(drafter, block[:1])]))
        drafter.rollback(context)
    return AtContext(context, single, statistics.median(blocks), max(0.0, statistics.median(back) - single))


def hold(drafter: Drafter, context: int) -> None:
    """Make it hold a prompt of that length, with candidates."""
    drafter.rollback(0)
    drafter.feed(prompt(context))
    drafter.candidates()


def _step(drafter: Drafter) -> None:
    likely = drafter.candidates().ids
    drafter.feed([int(likely[0]) if len(likely) else _FIRST_ID])
    drafter.candidates()


def _feed(drafter: Drafter, tokens: Sequence[int]) -> None:
    drafter.feed(tokens)
    drafter.candidates()


def timed_ms(calls: Sequence[Callable[[], object]]) -> float:
    """The median of the calls' times."""
    times = []
    for call in calls:
        began_s = time.perf_counter()
        call()
        times.append((time.perf_counter() - began_s) * 1e3)
    return statistics.median(times)


def peak_bytes() -> int | None:
    """The largest resident size of this process so far."""
    if os.name != "posix":
        return None
    if _STATUS.is_file():  # Linux; there getrusage begins with the size of the process that started this one
        line = next((one for one in _STATUS.read_text().splitlines() if one.startswith("VmHWM:")), None)
        if line is not None:
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
