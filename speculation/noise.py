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
    """The ten round keys of a seed, shape [10, 2, 1], rows ordered as `_Philox` uses them.

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


class _Philox:
    """Ten rounds on n counters, in place: a drafter pays them for every guess, and nearly all of it is numpy's calls.

    Counters are split into words (0, 2) and words (1, 3), each of shape [2, n], so that both multiplications of a round
    are one call. Products of 64 bits are seen as their halves; those of one round are read while the next is written.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._even = np.empty((2, count), dtype=np.uint32)
        self._lanes = np.empty((4, count), dtype=np.uint32)
        self._products = []
        for _ in range(2):
            products = np.empty((2, count), dtype=np.uint64)
            words = products.view(np.uint32).reshape(2, count, 2)[::-1]
            self._products.append((products, words[:, :, _HIGH], words[:, :, 1 - _HIGH]))

    def lanes(
        self, even: npt.ArrayLike, odd: npt.NDArray[np.uint32], keys: npt.NDArray[np.uint32]
    ) -> npt.NDArray[np.uint32]:
        """The four lanes of each counter, shape [4, n]; good until the next call. keys: see `round_keys`."""
        state, (now, other) = self._even, self._products
        state[:] = even
        for key in keys:
            products, high, low = now
            np.multiply(state, _MULTIPLIERS, out=products, dtype=np.uint64)
            np.bitwise_xor(high, odd, out=state)
            np.bitwise_xor(state, key, out=state)
            odd, now, other = low, other, now
        self._lanes[0::2], self._lanes[1::2] = state, odd
        return self._lanes


def philox4x32(counter: npt.NDArray[np.uint32], seed: int) -> npt.NDArray[np.uint32]:
    """Philox 4x32-10 of counters of shape [n, 4]; returns shape [n, 4]. Raises ValueError for a seed out of range."""
    words = np.ascontiguousarray(counter.T, dtype=np.uint32)
    return _Philox(len(counter)).lanes(words[0::2], words[1::2], round_keys(seed)).T


class Noise:
    """The noise of one seed. One caller at a time: it computes in place."""

    def __init__(self, seed: int) -> None:
        """Raises ValueError unless 0 <= seed < 2**64."""
        self._keys = round_keys(seed)
        self._philox, self._places = _Philox(0), np.arange(0)

    def integers(self, position: int, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
        """The 32-bit integers of tokens (shape [n]) at a position; shape [n]."""
        if (count := len(tokens)) != self._philox.count:
            self._philox, self._places = _Philox(count), np.arange(count)
        odd = np.zeros((2, count), dtype=np.uint32)
        odd[0] = tokens >> 2
        lanes = self._philox.lanes([[position], [0]], odd, self._keys)
        return np.asarray(lanes[tokens & 3, self._places])

    def gumbel(self, position: int, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Standard Gumbel variates of tokens (shape [n]) at a position; shape [n], float64."""
        return uniform_to_gumbel(self.integers(position, tokens))


def uniform_to_gumbel(integers: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
    """``-log(-log u)`` with ``u = (x + 0.5) * 2**-32``; u is never 0 or 1 in float64."""
    return np.asarray(-np.log(-np.log((integers + 0.5) * 2.0**-32)))
