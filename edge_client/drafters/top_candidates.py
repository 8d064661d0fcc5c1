"""From a row of logits to the likeliest candidates: the part of every drafter that is the same."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edge_client.drafters.base import Candidates, DrafterError

# Below this length one argpartition beats looking for the promising columns first.
_DIRECT_LENGTH = 8192
_ROWS = 64


def top_candidates(logits: npt.NDArray[np.floating], count: int) -> Candidates:
    """The `count` likeliest tokens of `logits`, shape [V], with log-probabilities over the whole row.

    Sorted by falling probability, equal ones by rising id. Raises DrafterError if the row holds NaN or +inf.
    """
    if logits.dtype != np.float32:
        logits = logits.astype(np.float32)
    chosen = _largest(logits, min(count, len(logits)))
    chosen.sort()
    values = logits[chosen].astype(np.float64)
    order = np.argsort(-values, kind="stable")
    values = values[order]
    highest = values[0]
    total = float(np.exp(logits - np.float32(highest)).sum()) if math.isfinite(highest) else math.nan
    if not math.isfinite(total):
        raise DrafterError("the model's logits are not finite numbers; the model file is damaged or unsuitable")
    log_total = highest + math.log(total)

    def power_sum(power: float) -> float:
        return float(np.exp((logits - np.float32(highest)) * np.float32(min(power, 1e30))).sum())

    return Candidates(chosen[order], values - log_total, power_sum)


def _largest(row: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Indices of the `count` largest entries in no particular order, shape [count].

    A long row is folded into 64 rows: the largest entries lie in the columns with the largest maxima, and there are at
    most `count` such columns. For 128k entries that is about 10 times faster than one argpartition, and as exact.
    """
    length = len(row)
    width = length // _ROWS
    if length <= _DIRECT_LENGTH or count >= width:
        return np.argpartition(row, length - count)[length - count :].astype(np.int64, copy=False)
    folded = row[: width * _ROWS].reshape(_ROWS, width)
    columns = np.argpartition(folded.max(axis=0), width - count)[width - count :]
    indices = (columns[None, :] + np.arange(0, width * _ROWS, width)[:, None]).ravel()
    indices = np.concatenate((indices, np.arange(width * _ROWS, length)))
    best = np.argpartition(row[indices], len(indices) - count)[len(indices) - count :]
    return indices[best]
