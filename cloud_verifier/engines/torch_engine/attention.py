"""Attention of a packed forward over the pool of pages, registered with transformers under three names.

`plain` is the definition: each segment's rows against the positions of their sequence up to their own.
`strict` is the one to use: the same sums, but in tiles of one fixed shape, so that a row's result is bitwise
the same in any company and in any cut into blocks, and with far fewer calls.
`static` is for GPUs: one kernel (`kernels`) over buffers that stay where they are.

transformers does not hand extra arguments through every model, so the forward that runs is found in a context variable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from cloud_verifier.engines.torch_engine.kernels import Kernel
from cloud_verifier.engines.torch_engine.layout import Layout, TileBatch
from cloud_verifier.engines.torch_engine.pool import PagedLayer, PagePool
from cloud_verifier.engines.torch_engine.static_inputs import StaticLayout

STRICT = "outrider_strict"
PLAIN = "outrider_plain"
STATIC = "outrider_static"
UNSUPPORTED = ("softcap", "s_aux", "sinks")  # score soft-capping and attention sinks: not sums that SDPA computes
HARMLESS = ("position_ids", "cache_position")  # tensors that models hand on and attention does not look at

_current: ContextVar[tuple[PagePool, Layout | StaticAttention]] = ContextVar("outrider_forward")


class StaticAttention(NamedTuple):
    """What a forward in a fixed shape uses. split_pages: see `kernels.Attend`; None if not strict."""

    layout: StaticLayout
    kernel: Kernel
    split_pages: int | None

    @property
    def write_index(self) -> torch.Tensor:
        """As in `PagePool`."""
        return self.layout.write_index


class UnsupportedAttention(Exception):
    """The model asks its attention for something the engine does not compute."""


@contextmanager
def forward_on(pool: PagePool, layout: Layout | StaticAttention) -> Iterator[None]:
    """Within it, models set to one of our attentions write to this pool and read from it by this layout.

    A `Layout` is for STRICT and PLAIN, a `StaticAttention` for STATIC.
    """
    pool.write_index = layout.write_index
    pool.copies = layout.copies if isinstance(layout, Layout) else None
    token = _current.set((pool, layout))
    try:
        yield
    finally:
        _current.reset(token)


def _enter(
    module: torch.nn.Module, key: torch.Tensor, value: torch.Tensor, mask: object, extra: dict[str, Any]
) -> tuple[PagedLayer, Layout | StaticAttention]:
    """What the forward that runs reads and writes. Raises UnsupportedAttention.

    A mask or a window may begin to matter only after thousands of tokens, where no trial finds it. So it is enough that
    a model hands one over: transformers itself makes no mask for our attention.
    """
    pool, layout = _current.get()
    if mask is not None:
        raise UnsupportedAttention("it masks attention by a rule of its own")
    window = extra.get("sliding_window")
    if window is not None and window < pool.context_limit:
        raise UnsupportedAttention(f"it attends over a window of {window} tokens, fewer than the context has")
    for name, given in extra.items():
        if given is not None and (name in UNSUPPORTED or isinstance(given, torch.Tensor)) and name not in HARMLESS:
            raise UnsupportedAttention(f"its attention uses {name}")
    layer = pool.paged_layer(int(module.layer_idx))  # type: ignore[arg-type]
    for states, cached in ((key, layer.keys), (value, layer.values)):
        if (states.shape[1], states.shape[3]) != cached.shape[2:]:
            raise UnsupportedAttention("it caches something other than its keys and values")
    return layer, layout


def plain(
    query: torch.Tensor, layer: PagedLayer, layout: Layout | StaticAttention, scale: float | None
) -> torch.Tensor:
    """query: [heads, rows, width]; returns [rows, heads, value width]. New keys and values are in the pool already."""
    assert isinstance(layout, Layout)
    heads, rows, _ = query.shape
    out = query.new_zeros(rows, heads, layer.values.shape[3])
    grouped = heads != layer.keys.shape[2]
    row = 0
    for segment, pages, mask in zip(layout.segments, layout.segment_pages(), layout.segment_masks(), strict=True):
        end = segment.start + segment.rows
        keys, values = (
            states[pages].flatten(0, 1)[:end].transpose(0, 1)[None] for states in (layer.keys, layer.values)
        )
        asked = query[None, :, row : row + segment.rows]
        seen = scaled_dot_product_attention(asked, keys, values, mask, scale=scale, enable_gqa=grouped)
        out[row : row + segment.rows] = seen[0].transpose(0, 1)
        row += segment.rows
    return out


def strict(
    query: torch.Tensor, layer: PagedLayer, layout: Layout | StaticAttention, scale: float | None
) -> torch.Tensor:
    """Shapes as in `plain`."""
    assert isinstance(layout, Layout)
    (heads, rows, width), kv_heads = query.shape, layer.keys.shape[2]
    group = heads // kv_heads
    states, pitch = _flat(query.transpose(0, 1))
    index = layout.head_index(heads, kv_heads, pitch)
    tiles, done = states.index_select(0, index.gather), 0
    results = []
    for batch, mask in zip(layout.batches, layout.tile_masks(group, query.dtype), strict=True):
        count = batch.last - batch.first
        part = tiles[done : done + count * batch.rows * heads].view(count, kv_heads, batch.rows * group, width)
        done += count * batch.rows * heads
        results.append(attended(part, *_seen(layer, batch), mask, scale).reshape(-1, layer.values.shape[3]))
    tiled = results[0] if len(results) == 1 else torch.cat(results)
    return tiled.index_select(0, index.scatter).view(rows, heads, -1)


def attended(
    tiles: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """[tiles, heads, rows, width] on [tiles, heads, keys, width] each; returns [tiles, rows, heads, value width]."""
    alone = tiles.shape[0] * tiles.shape[1] == 1
    if alone:
        # On a CPU several pieces of work are spread over threads, but the matrix products of a lone piece are split
        # among them, and then add up in another order. So there is never a lone piece.
        tiles, keys, values = tiles.expand(2, -1, -1, -1), keys.expand(2, -1, -1, -1), values.expand(2, -1, -1, -1)
    seen = scaled_dot_product_attention(tiles, keys, values, mask, scale=scale).transpose(1, 2)
    return seen[:1] if alone else seen


def _flat(query: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Of states [rows, heads, width] those of each head one after the other, [n, width], and how many a row has; others
    may lie between rows."""
    rows, heads, width = query.shape
    between, beside, one = query.stride()
    if (beside, one) != (width, 1) or between % width or query.device.type != "cpu":
        return query.reshape(-1, width), heads
    pitch = between // width
    return query.as_strided(((rows - 1) * pitch + heads, width), (width, 1)), pitch


def static(
    query: torch.Tensor, layer: PagedLayer, layout: Layout | StaticAttention, scale: float | None
) -> torch.Tensor:
    """Shapes as in `plain`."""
    assert isinstance(layout, StaticAttention)
    rows = query.transpose(0, 1)
    return layout.kernel.attend(rows, layer.keys, layer.values, layout.layout, scale, layout.split_pages)


def _seen(layer: PagedLayer, batch: TileBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys and the values that tiles see, [tiles, heads, keys, width] each; views where that can be."""
    count = batch.last - batch.first
    if batch.pages is None:
        return _in_place(layer.keys, batch, count), _in_place(layer.values, batch, count)
    keys, values = (pages.view(-1, batch.keys, *pages.shape[2:]).transpose(1, 2) for pages in layer.gather(batch.pages))
    if batch.lone:
        return keys.expand(count, -1, -1, -1), values.expand(count, -1, -1, -1)
    return keys, values


def _in_place(states: torch.Tensor, batch: TileBatch, count: int) -> torch.Tensor:
    """states: contiguous, [pages, PAGE_TOKENS, heads, width]."""
    _, _, heads, width = states.shape
    page = states.stride(0)
    return states.as_strided(
        (count, heads, batch.keys, width),
        (batch.step * page, width, heads * width, 1),
        states.storage_offset() + batch.start * page,
    )


def _register(
    name: str, compute: Callable[[torch.Tensor, PagedLayer, Layout | StaticAttention, float | None], torch.Tensor]
) -> None:
    """Let transformers call it: query [1, heads, rows, width] in, [1, rows, heads, value width] out."""

    def attention(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: object = None,
        scaling: float | None = None,
        **extra: Any,
    ) -> tuple[torch.Tensor, None]:
        layer, layout = _enter(module, key, value, attention_mask, extra)
        return compute(query[0], layer, layout, scaling)[None], None

    AttentionInterface.register(name, attention)


_register(PLAIN, plain)
_register(STRICT, strict)
_register(STATIC, static)
