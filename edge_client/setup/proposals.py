"""What to try on this device: free drafters, and the models that lie here and can be expected to be of use."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edge_client.drafters.sources.model_search import LeftOut, Model
from edge_client.drafters.sources.spec import LOOKUPS
from outrider_models.memory_check import available_bytes, readable

MOST_TRIED = 8
SHARE = 0.5  # of the free memory that a drafter may take without being asked for by name
_SPEED_BYTES = 64 << 20  # read to see how fast memory is; more than caches hold
_TIMES = 4
_READ_SHARE = 0.7  # of the weights, for every token at least: embeddings are looked up, not read


class Candidate(NamedTuple):
    """spec: as `--drafter` takes it. label: for people."""

    spec: str
    label: str


def candidates(
    models: Sequence[Model], threads: int, step_ms: float | None = None
) -> tuple[list[Candidate], list[LeftOut]]:
    """What is worth a trial, and what is not, with figures. step_ms: of the verifier per token, if it is known."""
    free_bytes = available_bytes()
    bytes_per_ms = memory_bytes_per_ms() * threads if models and step_ms is not None else 0.0
    worth = [Candidate(name, name) for name in LOOKUPS]
    left_out = []
    for model in models:
        why = _why_not(model, free_bytes, bytes_per_ms, step_ms)
        if not why and len(worth) - len(LOOKUPS) >= MOST_TRIED:
            why = f"not tried: {MOST_TRIED} smaller models are; name it by --drafter to have it tried"
        if why:
            left_out.append(LeftOut(model.label, why))
        else:
            worth.append(Candidate(str(model.path), model.label))
    return worth, left_out


def _why_not(model: Model, free_bytes: int | None, bytes_per_ms: float, step_ms: float | None) -> str:
    if free_bytes is not None and model.memory_bytes > SHARE * free_bytes:
        return (
            f"it needs about {readable(model.memory_bytes)} of memory, more than half of the "
            f"{readable(free_bytes)} that are free"
        )
    if step_ms is None or not bytes_per_ms or not model.reads_all_weights:
        return ""
    least_ms = _READ_SHARE * model.weights_bytes / bytes_per_ms
    if least_ms <= step_ms:
        return ""
    return (
        f"too slow here: reading its {readable(model.weights_bytes)} takes at least {least_ms:.0f} ms per guess, "
        f"and the verifier writes a token in {step_ms:.0f} ms"
    )


def memory_bytes_per_ms() -> float:
    """How much one thread can read of the memory, at its best of a few times."""
    block = np.ones(_SPEED_BYTES // 8, np.int64)
    took_ms = []
    for _ in range(_TIMES):
        began_s = time.perf_counter()
        block.sum()
        took_ms.append((time.perf_counter() - began_s) * 1e3)
    return _SPEED_BYTES / min(took_ms)
