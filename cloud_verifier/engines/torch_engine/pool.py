"""The tensors behind the pages of keys and values.

A page is not cleaned on rollback: attention looks only at positions up to the token it computes, so what lies beyond a
sequence's length is never seen. It is cleaned when a sequence gets it, so that nothing of one session, not even a NaN,
reaches another.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from cloud_verifier.engines.pages import PAGE_TOKENS
from cloud_verifier.engines.sampling.upload import upload


class LayerShape(NamedTuple):
    """What one layer caches of a token: heads of a key's and of a value's width."""

    heads: int
    key_width: int
    value_width: int


def cache_name(model: PreTrainedModel) -> str:
    """What a forward of the model calls its cache, in arguments and result: `cache` since transformers 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


@torch.inference_mode()
def layer_shapes(model: PreTrainedModel) -> list[LayerShape]:
    """What the layers of a model cache, by trying: configurations name it in too many ways.

    Empty if they cache nothing.
    """
    ids = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    cache = model(input_ids=ids, use_cache=True).get(cache_name(model))
    if cache is None:
        return []
    return [LayerShape(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]) for layer in cache.layers]


def page_bytes(shapes: Sequence[LayerShape], dtype: torch.dtype) -> int:
    """Of one page in all layers."""
    return PAGE_TOKENS * dtype.itemsize * sum(s.heads * (s.key_width + s.value_width) for s in shapes)


class PagedLayer(CacheLayerMixin):
    """One layer's keys [pages, PAGE_TOKENS, heads, width], and its values."""

    is_sliding = False

    def __init__(self, pool: PagePool, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pool = pool
        self.keys: torch.Tensor = keys
        self.values: torch.Tensor = values
        self._rows = (keys.flatten(0, 1), values.flatten(0, 1))  # views: by position in the pool
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """There is nothing left to do."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: object, **_kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scatter one packed forward's states ([1, heads, rows, width]) to where `PagePool.write_index` says.

        Rows past the last index are padding and are dropped. Returns its arguments: attention reads the pool itself.
        """
        shapes = key_states.shape[1::2], value_states.shape[1::2]
        if shapes == tuple(rows.shape[1:] for rows in self._rows):  # if not, attention refuses it, in a sentence
            self.write(key_states[0].transpose(0, 1), value_states[0].transpose(0, 1))
        return key_states, value_states

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """As `update`; the states are [rows, heads, width] here."""
        index, copies = self._pool.write_index, self._pool.copies
        for rows, states in zip(self._rows, (keys, values), strict=True):
            rows.index_copy_(0, index, states[: len(index)])
            if copies is not None:
                rows.index_copy_(0, copies[1], states.index_select(0, copies[0]))

    def gather(self, pages: torch.Tensor) -> list[torch.Tensor]:
        """Copies of the keys and of the values of pages (int64 [n]), [n, PAGE_TOKENS, heads, width] each.

        Good until the next call for any layer of the pool.
        """
        return [
            torch.index_select(states, 0, pages, out=self._pool.scratch(kind, states, len(pages)))
            for kind, states in (("keys", self.keys), ("values", self.values))
        ]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0  # positions are given explicitly; a packed forward has no one length

    def get_max_length(self) -> int:
        return self.keys.shape[0] * PAGE_TOKENS


class PagePool(Cache):
    """A transformers cache whose layers hold the pages of every sequence.

    Memory that was never written to is not touched, so on a CPU it is not taken either. One page more than asked for,
    `spare_page`, belongs to nobody: steps of a fixed shape write their padding there.
    context_limit: of a sequence. write_index: where each row of the forward that runs now goes, page * PAGE_TOKENS +
    place in it, int64 [rows]. copies: which rows go somewhere else, too, and where, int64 [2, copies]; or None.
    """

    def __init__(self, shapes: Sequence[LayerShape], pages: int, dtype: torch.dtype, device: torch.device) -> None:
        self.shapes = list(shapes)
        self.pages = self.spare_page = pages
        self.context_limit = pages * PAGE_TOKENS
        self.write_index: torch.Tensor
        self.copies: torch.Tensor | None = None
        self._scratch: dict[tuple[str, torch.Size], torch.Tensor] = {}
        self._groups: list[torch.Tensor] = []  # [layers, pages, PAGE_TOKENS, heads, width]
        layers: list[PagedLayer | None] = [None] * len(shapes)
        for shape in dict.fromkeys(shapes):
            alike = [index for index, other in enumerate(shapes) if other == shape]
            keys, values = (
                torch.empty(len(alike), pages + 1, PAGE_TOKENS, shape.heads, width, dtype=dtype, device=device)
                for width in (shape.key_width, shape.value_width)
            )
            self._groups += [keys, values]
            for place, index in enumerate(alike):
                layers[index] = PagedLayer(self, keys[place], values[place])
        self._paged = cast(list[PagedLayer], layers)
        super().__init__(layers=cast(Any, layers))

    def paged_layer(self, index: int) -> PagedLayer:
        """The layer of this index."""
        return self._paged[index]

    def scratch(self, kind: str, states: torch.Tensor, pages: int) -> torch.Tensor:
        """Room for copies of pages of states, one for each kind; what was in it is lost.

        It is kept: fresh memory of this size costs more than the copy, for an operating system hands it out page by
        page and zeroes each.
        """
        key = (kind, states.shape[1:])
        if key not in self._scratch or len(self._scratch[key]) < pages:
            self._scratch.pop(key, None)  # before there is another
            self._scratch[key] = states.new_empty(pages, *states.shape[1:])
        return self._scratch[key][:pages]

    @torch.inference_mode()
    def clear(self, pages: Sequence[int]) -> None:
        """Zero these pages."""
        index = upload(pages, torch.int64, self._groups[0].device)
        for group in self._groups:
            group.index_fill_(1, index, 0)

    @torch.inference_mode()
    def copy(self, source: int, target: int) -> None:
        """Copy all of a page."""
        for group in self._groups:
            group[:, target] = group[:, source]
