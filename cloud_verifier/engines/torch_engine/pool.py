"""The pool of keys and values that all sequences share: one slot each, rolled back by length.

A slot is never cleaned on rollback: attention looks only at positions up to the token it computes, so what lies beyond
a sequence's length is never seen. It is cleaned when its sequence is closed, so that nothing of one session, not even a
NaN, stays behind for the next.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

TOKENS_MULTIPLE = 64  # capacities are multiples of it, because strict attention reads keys in multiples of it
FIRST_SLOTS = 4
FIRST_TOKENS = 256


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, [slots, tokens, heads, width] each; allocated when the first keys arrive."""

    is_sliding = False

    def __init__(self, pool: SlotPool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pool = pool
        self.keys: torch.Tensor
        self.values: torch.Tensor

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        slots, tokens = self._pool.capacity
        self.keys = key_states.new_zeros(slots, tokens, key_states.shape[1], key_states.shape[3])
        self.values = value_states.new_zeros(slots, tokens, value_states.shape[1], value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: object, **_kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scatter one packed forward's states ([1, heads, rows, width]) to where `SlotPool.write_index` says.

        Rows past the last index are padding and are dropped. Returns its arguments: attention reads the pool itself.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        index = self._pool.write_index
        rows = index[0].shape[0]
        self.keys.index_put_(index, key_states[0, :, :rows].transpose(0, 1))
        self.values.index_put_(index, value_states[0, :, :rows].transpose(0, 1))
        return key_states, value_states

    def grow(self, slots: int, tokens: int) -> None:
        """Reallocate to at least this capacity, keeping what is there; on a lack of memory nothing has changed."""
        if not self.is_initialized or (slots <= self.keys.shape[0] and tokens <= self.keys.shape[1]):
            return
        grown = []
        for old in (self.keys, self.values):
            new = old.new_zeros(max(slots, old.shape[0]), max(tokens, old.shape[1]), *old.shape[2:])
            new[: old.shape[0], : old.shape[1]] = old
            grown.append(new)
        self.keys, self.values = grown

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0  # positions are given explicitly; a packed forward has no one length

    def get_max_length(self) -> int:
        return self._pool.capacity[1]


class SlotPool(Cache):
    """A transformers cache whose layers hold every sequence in a slot of its own.

    capacity: slots and tokens per slot that are allocated now; both grow by doubling up to the limits.
    write_index: the slot and the position of each row of the forward that runs now, int64 of shape [rows] each.
    """

    def __init__(self, max_slots: int, max_tokens: int) -> None:
        self._max_slots = max_slots
        self._max_tokens = _round_up(max_tokens)
        self.capacity = (min(FIRST_SLOTS, max_slots), min(FIRST_TOKENS, self._max_tokens))
        self.write_index: tuple[torch.Tensor, torch.Tensor]
        self._layers: list[SlotLayer] = []  # those of `layers`, which transformers adds one by one, by their type
        super().__init__(layer_class_to_replicate=cast(Any, self._add_layer))

    def slot_layer(self, index: int) -> SlotLayer:
        """The layer of this index, which has been written to."""
        return self._layers[index]

    def _add_layer(self) -> SlotLayer:
        self._layers.append(SlotLayer(self))
        return self._layers[-1]

    def reserve(self, slots: int, tokens: int) -> None:
        """Make room for this many slots of this many tokens each."""
        have_slots, have_tokens = self.capacity
        while have_slots < slots:
            have_slots = min(2 * have_slots, self._max_slots)
        while have_tokens < tokens:
            have_tokens = min(2 * have_tokens, self._max_tokens)
        if (have_slots, have_tokens) != self.capacity:
            for layer in self._layers:
                layer.grow(have_slots, have_tokens)
            self.capacity = (have_slots, have_tokens)

    def clean(self, slot: int) -> None:
        """Zero one slot."""
        for layer in self._layers:
            if layer.is_initialized and slot < layer.keys.shape[0]:
                layer.keys[slot].zero_()
                layer.values[slot].zero_()


def _round_up(tokens: int) -> int:
    return -(-tokens // TOKENS_MULTIPLE) * TOKENS_MULTIPLE
