"""Shared noise: the random numbers that device and verifier both know.

Token v at position i gets the standard Gumbel variate ``G(seed, i, v) = -log(-log u)`` with ``u = (x + 0.5) * 2**-32``
and x one lane of Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): key = the
64-bit seed (low word first), counter = (i, v // 4, 0, 0), lane = v % 4. Then ``argmax_v(log p_i(v) + G(seed, i, v))``
is an exact sample of p_i, and a drafter that uses the same G with its own q guesses it with probability at least
(1-TV)/(1+TV) (Daliri, Musco, Suresh, arXiv 2408.07978).

Test vectors for other implementations: `tests/data/noise_vectors.json`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

NOISE_VERSION = 1
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
GUMBEL_MIN, GUMBEL_MAX = -3.1302, 22.8739  # the range of G, rounded outwards

_MULTIPLIERS = np.array(MULTIPLIERS, dtype=np.uint64)[:, None]
_HIGH = 1  # index of the high word of a little-endian uint64 seen as two uint32


def round_keys(seed: int) -> npt.NDArray[np.uint32]:
    """The ten round keys of a seed, shape [10, 2, 1], rows ordered as `_philox_halves` uses them.

    Raises ValueError unless 0 <= seed < 2**64.
    """
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed {seed} is not an unsigned 64-bit number")
    words = [seed & 0xFFFFFFFF, seed >> 32]
    keys = [
        [(word + r * step) & 0xFFFFFFFF for word, step in zip(words, KEY_INCREMENTS, strict=True)]
        for r in range(ROUNDS)
    ]
    return np.array(keys, dtype=np.uint32)[:, :, None]


def _philox_halves(
    even: npt.NDArray[np.uint32], odd: npt.NDArray[np.uint32], keys: npt.NDArray[np.uint32]
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Ten rounds on counters split into words (0, 2) and words (1, 3), each of shape [2, n].

    Both multiplications of a round are one numpy call, because a drafter pays this per token.
    """
    for key in keys:
        words = np.multiply(even, _MULTIPLIERS, dtype=np.uint64).view(np.uint32).reshape(2, -1, 2)
        even = words[::-1, :, _HIGH] ^ odd
        even ^= key
        odd = words[::-1, :, 1 - _HIGH]
    return even, odd


def philox4x32(counter: npt.NDArray[np.uint32], seed: int) -> npt.NDArray[np.uint32]:
    """Philox 4x32-10 of counters of shape [n, 4]; returns shape [n, 4]. Raises ValueError for a seed out of range."""
    words = np.ascontiguousarray(counter.T, dtype=np.uint32)
    even, odd = _philox_halves(words[0::2], words[1::2], round_keys(seed))
    return np.stack([even[0], odd[0], even[1], odd[1]], axis=1)


class Noise:
    """The noise of one seed."""

    def __init__(self, seed: int) -> None:
        """Raises ValueError unless 0 <= seed < 2**64."""
        self._keys = round_keys(seed)

    def integers(self, position: int, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
        """The 32-bit integers of tokens (shape [n]) at a position; shape [n]."""
        even = np.zeros((2, len(tokens)), dtype=np.uint32)
        odd = np.zeros((2, len(tokens)), dtype=np.uint32)
        even[0] = position
        odd[0] = tokens >> 2
        even, odd = _philox_halves(even, odd, self._keys)
        lanes = np.stack([even[0], odd[0], even[1], odd[1]])
        return np.asarray(lanes[tokens & 3, np.arange(len(tokens))])

    def gumbel(self, position: int, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Standard Gumbel variates of tokens (shape [n]) at a position; shape [n], float64."""
        return uniform_to_gumbel(self.integers(position, tokens))


def uniform_to_gumbel(integers: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
    """``-log(-log u)`` with ``u = (x + 0.5) * 2**-32``; u is never 0 or 1 in float64."""
    return np.asarray(-np.log(-np.log((integers + 0.5) * 2.0**-32)))
