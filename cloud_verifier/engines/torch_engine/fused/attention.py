"""Attention over pages: each tile of a sequence's rows against the pages it sees, read where they lie.

What a tile sees is cut at fixed positions into splits that run side by side and are added up in order, so that one long
sequence alone keeps a GPU busy; and since the cuts depend on positions only, so does the sum (Dao et al.,
Flash-Decoding; He et al., "Defeating nondeterminism in LLM inference", for splits of a fixed size). All query heads
that share a key head are rows of one tile: keys are read once for all of them.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-any-return, no-untyped-call"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from cloud_verifier.engines.pages import PAGE_TOKENS
from cloud_verifier.engines.torch_engine.static_inputs import StaticLayout

TILE = 64  # query rows times the heads that share a key head
COMBINED = 16  # splits that are added up at a time
BUSY_PROGRAMS = 264  # two for each multiprocessor of an H100 or H200: more splits than that bring nothing


@triton.jit
def _sequence_of(tile, ends, sequences, TILE_ROWS: tl.constexpr):
    """The sequence that a tile belongs to: sequence s begins at tile ends[s] // TILE_ROWS + s."""
    low = 0
    high = sequences
    while low < high:
        middle = (low + high) // 2
        if tl.load(ends + middle) // TILE_ROWS + middle <= tile:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit(do_not_specialize=["sequences", "table_width", "split_pages", "splits"])
def _attend(
    query, keys, values, positions, ends, table, out, parts, tops, sums,
    scale, sequences, table_width, split_pages, splits, row_stride, head_stride,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, KEY_WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    KEY_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr, TILE: tl.constexpr, PAGE: tl.constexpr,
    LONE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    GROUP: tl.constexpr = HEADS // KEY_HEADS
    TILE_ROWS: tl.constexpr = TILE // GROUP
    tile = tl.program_id(0)
    key_head = tl.program_id(1)
    split = tl.program_id(2)
    sequence = _sequence_of(tile, ends, sequences, TILE_ROWS)
    first = tl.load(ends + sequence)
    last = tl.load(ends + sequence + 1)
    row = first + (tile - first // TILE_ROWS - sequence) * TILE_ROWS
    if row >= last:
        return
    member = tl.arange(0, TILE)
    rows = row + member // GROUP
    heads = key_head * GROUP + member % GROUP
    real = (member < TILE_ROWS * GROUP) & (rows < last)
    position = tl.load(positions + rows, mask=real, other=0).to(tl.int32)
    pages = tl.max(position) // PAGE + 1
    begin = split * split_pages
    if begin >= pages:
        return
    end = tl.minimum(begin + split_pages, pages)

    key_at = tl.arange(0, KEY_BLOCK)
    value_at = tl.arange(0, VALUE_BLOCK)
    place = tl.arange(0, PAGE)
    key_places = place[:, None] * (KEY_HEADS * KEY_WIDTH) + key_head * KEY_WIDTH + key_at[None, :]
    value_places = place[:, None] * (KEY_HEADS * VALUE_WIDTH) + key_head * VALUE_WIDTH + value_at[None, :]
    wide_rows = rows.to(tl.int64)
    asked = tl.load(
        query + wide_rows[:, None] * row_stride + heads[:, None] * head_stride + key_at[None, :],
        mask=real[:, None] & (key_at < KEY_WIDTH)[None, :],
        other=0.0,
    )
    top = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    mean = tl.zeros([TILE, VALUE_BLOCK], tl.float32)
    for number in range(begin, end):
        page = tl.load(table + sequence * table_width + number).to(tl.int64)
        key = tl.load(
            keys + page * (PAGE * KEY_HEADS * KEY_WIDTH) + key_places,
            mask=(key_at < KEY_WIDTH)[None, :],
            other=0.0,
        )
        score = tl.dot(asked, tl.trans(key), input_precision=PRECISION) * scale
        seen = (number * PAGE + place)[None, :] <= position[:, None]
        score = tl.where(seen, score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        against = tl.where(higher == float("-inf"), 0.0, higher)  # a row that sees nothing of this split
        weight = tl.exp2(score - against[:, None])
        fading = tl.exp2(top - against)
        total = total * fading + tl.sum(weight, 1)
        value = tl.load(
            values + page * (PAGE * KEY_HEADS * VALUE_WIDTH) + value_places,
            mask=(value_at < VALUE_WIDTH)[None, :],
            other=0.0,
        )
        mean = mean * fading[:, None] + tl.dot(weight.to(value.dtype), value, input_precision=PRECISION)
        top = higher

    place_of = wide_rows * HEADS + heads
    if LONE:
        tl.store(
            out + place_of[:, None] * VALUE_WIDTH + value_at[None, :],
            (mean / total[:, None]).to(out.dtype.element_ty),
            mask=real[:, None] & (value_at < VALUE_WIDTH)[None, :],
        )
    else:
        place_of = place_of * splits + split
        tl.store(
            parts + place_of[:, None] * VALUE_WIDTH + value_at[None, :],
            mean,
            mask=real[:, None] & (value_at < VALUE_WIDTH)[None, :],
        )
        tl.store(tops + place_of, top, mask=real)
        tl.store(sums + place_of, total, mask=real)


@triton.jit(do_not_specialize=["sequences", "split_pages", "splits"])
def _combine(
    parts, tops, sums, positions, ends, out, sequences, split_pages, splits,
    HEADS: tl.constexpr, VALUE_WIDTH: tl.constexpr, VALUE_BLOCK: tl.constexpr, COMBINED: tl.constexpr,
    PAGE: tl.constexpr,
):  # fmt: skip
    """Add up the splits of one head of one row; rows of no sequence become 0."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    value_at = tl.arange(0, VALUE_BLOCK)
    narrow = value_at < VALUE_WIDTH
    place_of = row.to(tl.int64) * HEADS + head
    mean = tl.zeros([VALUE_BLOCK], tl.float32)
    total = tl.full((), 1.0, tl.float32)
    if row < tl.load(ends + sequences):
        pages = tl.load(positions + row).to(tl.int32) // PAGE + 1
        count = (pages + split_pages - 1) // split_pages
        some = tl.arange(0, COMBINED)
        highest = tl.full([COMBINED], float("-inf"), tl.float32)
        for done in range(0, count, COMBINED):
            split = done + some
            highest = tl.maximum(
                highest, tl.load(tops + place_of * splits + split, mask=split < count, other=float("-inf"))
            )
        top = tl.max(highest, 0)
        total = tl.full((), 0.0, tl.float32)
        for done in range(0, count, COMBINED):
            split = done + some
            there = split < count
            at = place_of * splits + split
            weight = tl.exp2(tl.load(tops + at, mask=there, other=float("-inf")) - top)
            total += tl.sum(tl.load(sums + at, mask=there, other=0.0) * weight, 0)
            part = tl.load(
                parts + at[:, None] * VALUE_WIDTH + value_at[None, :], mask=there[:, None] & narrow[None, :], other=0.0
            )
            mean += tl.sum(part * weight[:, None], 0)
    tl.store(out + place_of * VALUE_WIDTH + value_at, (mean / total).to(out.dtype.element_ty), mask=narrow)


def fused(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layout: StaticLayout,
    scale: float | None,
    split_pages: int | None,
) -> torch.Tensor:
    """As `kernels.gathered`. split_pages: what a split has; None: as many splits as keep the device busy."""
    shape = layout.inputs.shape
    rows, heads, key_width = query.shape
    key_heads, value_width = keys.shape[2], values.shape[3]
    if query.stride(2) != 1:
        query = query.contiguous()
    assert keys.is_contiguous()
    assert values.is_contiguous()
    tiles = rows // (TILE // (heads // key_heads)) + shape.sequences
    if split_pages is None:
        wanted = max(1, BUSY_PROGRAMS // (min(tiles, rows) * key_heads))
        split_pages = triton.next_power_of_2(max(2, -(-shape.pages // wanted)))
    splits = -(-shape.pages // split_pages)
    lone = splits == 1
    fresh = torch.zeros if lone else torch.empty
    out = fresh(rows, heads, value_width, dtype=query.dtype, device=query.device)
    pieces = 0 if lone else rows * heads * splits
    parts, tops, sums = (
        torch.empty(pieces * width, dtype=torch.float32, device=query.device) for width in (value_width, 1, 1)
    )
    scale = (scale if scale is not None else key_width**-0.5) / math.log(2.0)
    sizes = {"HEADS": heads, "VALUE_WIDTH": value_width, "VALUE_BLOCK": _block(value_width), "PAGE": PAGE_TOKENS}
    positions, ends = layout.inputs.positions, layout.ends
    _attend[(tiles, key_heads, splits)](
        query, keys, values, positions, ends, layout.table, out, parts, tops, sums,
        scale, shape.sequences, shape.pages, split_pages, splits, query.stride(0), query.stride(1),
        KEY_HEADS=key_heads, KEY_WIDTH=key_width, KEY_BLOCK=_block(key_width), TILE=TILE, LONE=lone,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32", num_warps=4, num_stages=3, **sizes,
    )  # fmt: skip
    if not lone:
        _combine[(rows, heads)](
            parts, tops, sums, positions, ends, out, shape.sequences, split_pages, splits,
            COMBINED=COMBINED, num_warps=2, **sizes,
        )  # fmt: skip
    return out


def _block(width: int) -> int:
    """Triton's blocks are powers of two, and its matrix products take 16 at least."""
    return max(16, triton.next_power_of_2(width))
