"""The torch twin of `speculation.noise`: the same integers, on the engine's device, for many rows at once.

A row is one position of one sequence, with its own seed. torch has no unsigned 32-bit arithmetic to speak of, so the
words live in int64: a product of two of them wraps, and its low 64 bits are those of the unsigned product.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from speculation.noise import MULTIPLIERS, round_keys

WORD = 0xFFFFFFFF


def philox(even: torch.Tensor, odd: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Philox 4x32-10 on counters split into words (0, 2) and words (1, 3), int64 of shape [2, ...] each.

    keys: int64 [10, 2, ...], broadcastable to the counters. Returns the outputs, split in the same way.
    """
    multipliers = torch.tensor(MULTIPLIERS, device=even.device).view(2, *[1] * (even.dim() - 1))
    for key in keys:
        product = even * multipliers
        even = ((product >> 32) & WORD).flip(0) ^ odd ^ key
        odd = (product & WORD).flip(0)
    return even, odd


def gumbel(integers: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel variates, float64, of 32-bit integers in int64."""
    return -torch.log(-torch.log((integers.double() + 0.5) * 2.0**-32))


class RowNoise:
    """The noise of n rows, given by their seeds and positions."""

    def __init__(self, seeds: Sequence[int], positions: Sequence[int], device: torch.device) -> None:
        """Raises ValueError for a seed that is not an unsigned 64-bit number."""
        keys = np.concatenate([round_keys(seed) for seed in seeds], axis=2).astype(np.int64)
        self._keys = torch.from_numpy(keys).to(device)  # [10, 2, n]
        self._positions = torch.tensor(positions, dtype=torch.int64).to(device)

    def integers(self, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The integers of some tokens (int64 [m]) at some rows (int64 [m]); int64 [m]."""
        even = torch.stack([self._positions[rows], torch.zeros_like(tokens)])
        odd = torch.stack([tokens >> 2, torch.zeros_like(tokens)])
        even, odd = philox(even, odd, self._keys[:, :, rows])
        lanes = torch.stack([even[0], odd[0], even[1], odd[1]])
        return lanes.gather(0, (tokens & 3)[None])[0]

    def all_integers(self, vocabulary_size: int) -> torch.Tensor:
        """The integers of every token at every row; int64 [n, vocabulary_size]."""
        counters = torch.arange(-(-vocabulary_size // 4), device=self._positions.device)
        rows = len(self._positions)
        even = self._positions.new_zeros(2, rows, len(counters))
        odd = torch.zeros_like(even)
        even[0] = self._positions[:, None]
        odd[0] = counters
        even, odd = philox(even, odd, self._keys[:, :, :, None])
        lanes = torch.stack([even[0], odd[0], even[1], odd[1]], dim=-1)
        return lanes.view(rows, -1)[:, :vocabulary_size]
