"""How a llama.cpp sequence goes back: by dropping its tail, or, where it keeps a state, to a state kept from before.

Attention remembers positions, and a tail can be dropped. A recurrent or hybrid model (Mamba, RWKV, LFM2, Granite 4,
Qwen3-Next) remembers one state that no tail can be taken out of: it goes back to the latest state kept at or before the
wanted length, and evaluates again what lies between, with the next evaluation.
"""

from __future__ import annotations

import ctypes
import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_client.drafters.base import DrafterError

SEQUENCE = 0
_PARTIAL = 1  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY: of a hybrid model the recurrent part, not the attention's cache
_MOST_STATES = 48
_MOST_BYTES = 256 << 20
_MILESTONE_TOKENS = 256


class Rollback(ABC):
    """What llama.cpp remembers of the one sequence."""

    @abstractmethod
    def drop(self, length: int) -> None:
        """Forget all positions from `length` on. Evaluates nothing. Raises DrafterError if it cannot."""

    @abstractmethod
    def lacking(self, start: int) -> Sequence[int]:
        """The tokens to evaluate before position `start` comes next."""

    @abstractmethod
    def evaluated(self, tokens: Sequence[int], start: int) -> None:
        """Tell that these tokens were evaluated from position `start` on."""

    @property
    def size_bytes(self) -> int:
        """Of a copy of all that is remembered; 0 if there can be none."""
        return 0

    def copy(self) -> npt.NDArray[np.uint8]:
        """All that is remembered. Raises DrafterError."""
        raise DrafterError("a state cannot be copied with what it takes to go back from it")

    def restore(self, copied: npt.NDArray[np.uint8]) -> None:
        """Remember that, and nothing else. Raises DrafterError."""
        raise DrafterError("nothing was copied")


class PositionRollback(Rollback):
    """Of a model with attention."""

    def __init__(self, api: Any, context: Any) -> None:
        self._api, self._context = api, context
        self._memory = api.llama_get_memory(context)

    def drop(self, length: int) -> None:
        if not self._api.llama_memory_seq_rm(self._memory, SEQUENCE, length, -1):
            raise DrafterError(f"llama.cpp refused to roll back to {length} tokens")

    def lacking(self, start: int) -> Sequence[int]:
        return ()

    def evaluated(self, tokens: Sequence[int], start: int) -> None:
        """PositionRollback remember themselves."""

    @property
    def size_bytes(self) -> int:
        return int(self._api.llama_state_seq_get_size(self._context, SEQUENCE))

    def copy(self) -> npt.NDArray[np.uint8]:
        copied = np.empty(self.size_bytes, np.uint8)
        if self._api.llama_state_seq_get_data(self._context, _bytes(copied), len(copied), SEQUENCE) != len(copied):
            raise DrafterError("llama.cpp could not copy its keys and values")
        return copied

    def restore(self, copied: npt.NDArray[np.uint8]) -> None:
        if self._api.llama_state_seq_set_data(self._context, _bytes(copied), len(copied), SEQUENCE) != len(copied):
            raise DrafterError("llama.cpp could not take its keys and values back")


class StateRollback(Rollback):
    """Of a recurrent or hybrid model: the latest states, and one every 256 tokens.

    Drafting goes back a few tokens at a time and finds its state; a state costs memory (from 100 kB to tens of MB), so
    there are at most 48, in at most 256 MB.
    """

    def __init__(self, api: Any, context: Any) -> None:
        self._api, self._context = api, context
        self._memory = api.llama_get_memory(context)
        self._tokens: list[int] = []
        self._at = 0  # positions in llama.cpp's state; at most len(self._tokens)
        self._states: dict[int, Any] = {}  # by positions, ascending
        self._most = _MOST_STATES

    def drop(self, length: int) -> None:
        del self._tokens[length:]
        if self._at <= length:
            return
        for at in [at for at in self._states if at > length]:
            del self._states[at]
        self._at = max(self._states, default=0)
        if self._at == 0:
            self._remove(-1)
            return
        state = self._states[self._at]
        if not self._api.llama_state_seq_set_data_ext(self._context, state, len(state), SEQUENCE, _PARTIAL):
            raise DrafterError(f"llama.cpp could not go back to its state after {self._at} tokens")
        self._remove(self._at)

    def lacking(self, start: int) -> Sequence[int]:
        return self._tokens[self._at : start]

    def evaluated(self, tokens: Sequence[int], start: int) -> None:
        self._tokens[start:] = tokens
        self._at = start + len(tokens)
        size = self._api.llama_state_seq_get_size_ext(self._context, SEQUENCE, _PARTIAL)
        state = (ctypes.c_uint8 * size)()
        if self._api.llama_state_seq_get_data_ext(self._context, state, size, SEQUENCE, _PARTIAL) != size:
            raise DrafterError(f"llama.cpp could not keep its state after {self._at} tokens")
        self._states[self._at] = state
        self._most = max(2, min(_MOST_STATES, _MOST_BYTES // max(1, size)))
        while len(self._states) > self._most:
            del self._states[self._least_useful()]

    def _least_useful(self) -> int:
        """The oldest state, but of the first half rather one that another stands beside on the way back."""
        positions = list(self._states)
        older = positions[: len(positions) // 2]
        beside = [
            at for before, at in itertools.pairwise(older) if at // _MILESTONE_TOKENS == before // _MILESTONE_TOKENS
        ]
        return beside[0] if beside else positions[0]

    def _remove(self, length: int) -> None:
        if not self._api.llama_memory_seq_rm(self._memory, SEQUENCE, length, -1):
            raise DrafterError(f"llama.cpp refused to roll back to {length} tokens")


def _bytes(array: npt.NDArray[np.uint8]) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
