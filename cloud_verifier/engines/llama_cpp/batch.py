"""llama.cpp's batch, allocated once and filled through NumPy: each row has a token, a position and sequences."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Rows = slice | npt.NDArray[np.intp]


class Piece(NamedTuple):
    """Consecutive tokens. sequences: whose they are; they attend to what the first of them has. wanted: of so many of
    the last, logits."""

    sequences: tuple[int, ...]
    tokens: Sequence[int]
    position: int
    wanted: int


class Batch:
    """Room for a number of rows."""

    def __init__(self, api: Any, rows: int) -> None:
        self._tokens, self._positions, self._counts = (np.zeros(rows, np.int32) for _ in range(3))
        self._wants = np.zeros(rows, np.int8)
        self._sequences = np.zeros(rows, np.int32)  # of all pieces, one after the other
        self._lists = np.zeros(rows, np.uintp)  # for each row the address of its piece's first
        self._batch = api.llama_batch(
            0,
            _pointer(self._tokens, ctypes.c_int32),
            None,
            _pointer(self._positions, ctypes.c_int32),
            _pointer(self._counts, ctypes.c_int32),
            ctypes.cast(self._lists.ctypes.data, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            _pointer(self._wants, ctypes.c_int8),
        )

    def filled(self, pieces: Sequence[Piece], unasked: int = 0) -> tuple[Any, Rows]:
        """The batch with these pieces one after the other, as `llama_decode` takes it; good until the next.

        unasked: of so many of the last rows that want none, logits, too. Also returns which of the rows of logits are
        wanted.
        """
        self._sequences = np.array([each for piece in pieces for each in piece.sequences], np.int32)
        at, first = 0, self._sequences.ctypes.data
        for sequences, tokens, position, wanted in pieces:
            end = at + len(tokens)
            self._tokens[at:end] = tokens
            self._positions[at:end] = np.arange(position, position + end - at)
            self._counts[at:end] = len(sequences)
            self._lists[at:end] = first
            self._wants[at : end - wanted] = 0
            self._wants[end - wanted : end] = 1
            at, first = end, first + len(sequences) * self._sequences.itemsize
        self._batch.n_tokens = at
        wants = self._wants[:at]
        wanted = int(wants.sum())
        if not unasked:
            return self._batch, slice(wanted)
        before = wants.copy()
        wants[np.flatnonzero(wants == 0)[-unasked:]] = 1
        asked = np.flatnonzero(before[wants == 1])
        return self._batch, slice(wanted) if asked[-1] < wanted else asked


def _pointer(array: Any, kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))
