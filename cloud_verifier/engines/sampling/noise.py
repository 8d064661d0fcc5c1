"""The torch twin of `speculation.noise`: the same integers, on the engine's device, for many rows at once.

A row is one position of one sequence, with its own seed. torch has no unsigned 32-bit arithmetic to speak of, so the
words live in int64: a product of two of them wraps, and its low 64 bits are those of the unsigned product.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cloud_verifier.engines.sampling.upload import upload
from speculation.noise import KEY_INCREMENTS, MULTIPLIERS, ROUNDS, round_keys

WORD = 0xFFFFFFFF

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def philox(counter: Words, keys: torch.Tensor) -> Words:
    """Philox 4x32-10 of counters given as four words; words are int64 tensors in 0 .. 2**32 - 1 that broadcast
    together.

    keys: int64 [10, 2, ...], which broadcast too. Words that are alike for many counters may stay small: the first
    rounds, which have not mixed them yet, then cost little.
    """
    a, b, c, d = counter
    for first, second in keys:
        low, high = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b = ((high >> 32) ^ b ^ first) & WORD, high & WORD
        c, d = ((low >> 32) ^ d ^ second) & WORD, low & WORD
    return a, b, c, d


def gumbel(integers: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel variates, float64, of 32-bit integers in int64."""
    return -torch.log(-torch.log((integers.double() + 0.5) * 2.0**-32))


class RowNoise:
    """The noise of n rows, given by their seeds and positions."""

    def __init__(self, seeds: Sequence[int], positions: Sequence[int], device: torch.device) -> None:
        """Raises ValueError for a seed that is not an unsigned 64-bit number."""
        keys = np.concatenate([round_keys(seed) for seed in seeds], axis=2).astype(np.int64)
        self._keys = upload(keys, torch.int64, device)  # [10, 2, n]
        self._positions = upload(positions, torch.int64, device)

    @classmethod
    def on_device(cls, seeds: torch.Tensor, positions: torch.Tensor) -> RowNoise:
        """The same of seeds and positions that are on the device: int64 [n]; seeds with the bits of unsigned ones."""
        rounds = torch.arange(ROUNDS, device=seeds.device)[:, None]
        words = (seeds & WORD, (seeds >> 32) & WORD)
        keys = [word + rounds * step & WORD for word, step in zip(words, KEY_INCREMENTS, strict=True)]
        noise = cls.__new__(cls)
        noise._keys, noise._positions = torch.stack(keys, dim=1), positions
        return noise

    def integers(self, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The integers of some tokens (int64 [m]) at some rows (int64 [m]); int64 [m]."""
        zero = tokens.new_zeros(1)
        lanes = philox((self._positions[rows], tokens >> 2, zero, zero), self._keys[:, :, rows])
        return torch.stack(lanes).gather(0, (tokens & 3)[None])[0]

    def all_integers(self, vocabulary_size: int) -> torch.Tensor:
        """The integers of every token at every row; int64 [n, vocabulary_size]."""
        counters = torch.arange(-(-vocabulary_size // 4), device=self._positions.device)[None]
        zero = counters.new_zeros(1, 1)
        lanes = philox((self._positions[:, None], counters, zero, zero), self._keys[:, :, :, None])
        return torch.stack(lanes, dim=-1).flatten(1)[:, :vocabulary_size]
