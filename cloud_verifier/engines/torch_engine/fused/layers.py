"""What a decoder layer does between its matrix products, each in one kernel, rounded as transformers rounds it."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-any-return, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _normalise(states, weight, width, epsilon, dtype: tl.constexpr):
    """RMS norm of one row, float32 in and out, rounded to `dtype` before the weight and after it."""
    scale = tl.rsqrt(tl.sum(states * states, 0) / width + epsilon)
    return ((states * scale).to(dtype).to(tl.float32) * weight).to(dtype)


@triton.jit
def _add_norm(states, residual, weight, out, epsilon, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * WIDTH
    at = tl.arange(0, BLOCK)
    there = at < WIDTH
    kept = tl.load(residual + row + at, mask=there, other=0.0)
    dtype: tl.constexpr = kept.dtype
    if ADD:
        more = tl.load(states + row + at, mask=there, other=0.0)
        kept = (kept.to(tl.float32) + more.to(tl.float32)).to(dtype)
        tl.store(residual + row + at, kept, mask=there)
    weights = tl.load(weight + at, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row + at, _normalise(kept.to(tl.float32), weights, WIDTH, epsilon, dtype), mask=there)


@triton.jit
def _rotate_and_write(
    projected, cosines, sines, query_weight, key_weight, places, query, keys, values, epsilon,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """One head of one row of projected queries, keys and values, [HEADS + 2 * KEY_HEADS, WIDTH] a row."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    half: tl.constexpr = WIDTH // 2
    at = tl.arange(0, BLOCK)
    there = at < half
    source = projected + (row * (HEADS + 2 * KEY_HEADS) + head) * WIDTH + at
    low = tl.load(source, mask=there, other=0.0)
    high = tl.load(source + half, mask=there, other=0.0)
    dtype: tl.constexpr = low.dtype
    place = tl.load(places + row)
    if head >= HEADS + KEY_HEADS:
        target = values + (place * KEY_HEADS + head - HEADS - KEY_HEADS) * WIDTH + at
        tl.store(target, low, mask=there)
        tl.store(target + half, high, mask=there)
        return
    a, b = low.to(tl.float32), high.to(tl.float32)
    if NORM:
        weight = query_weight
        if head >= HEADS:
            weight = key_weight
        scale = tl.rsqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / WIDTH + epsilon)
        a = (a * scale).to(dtype).to(tl.float32) * tl.load(weight + at, mask=there, other=0.0).to(tl.float32)
        b = (b * scale).to(dtype).to(tl.float32) * tl.load(weight + half + at, mask=there, other=0.0).to(tl.float32)
        a, b = a.to(dtype).to(tl.float32), b.to(dtype).to(tl.float32)
    angle = row * WIDTH + at
    low_cosine = tl.load(cosines + angle, mask=there, other=0.0).to(tl.float32)
    high_cosine = tl.load(cosines + angle + half, mask=there, other=0.0).to(tl.float32)
    low_sine = tl.load(sines + angle, mask=there, other=0.0).to(tl.float32)
    high_sine = tl.load(sines + angle + half, mask=there, other=0.0).to(tl.float32)
    low = ((a * low_cosine).to(dtype).to(tl.float32) + (-b * low_sine).to(dtype).to(tl.float32)).to(dtype)
    high = ((b * high_cosine).to(dtype).to(tl.float32) + (a * high_sine).to(dtype).to(tl.float32)).to(dtype)
    if head < HEADS:
        target = query + (row * HEADS + head) * WIDTH + at
    else:
        target = keys + (place * KEY_HEADS + head - HEADS) * WIDTH + at
    tl.store(target, low, mask=there)
    tl.store(target + half, high, mask=there)


@triton.jit
def _gate(both, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = at < WIDTH
    gate = tl.load(both + row * (2 * WIDTH) + at, mask=there, other=0.0)
    up = tl.load(both + row * (2 * WIDTH) + WIDTH + at, mask=there, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    tl.store(out + row * WIDTH + at, (silu.to(tl.float32) * up.to(tl.float32)).to(gate.dtype), mask=there)


def add_norm(states: torch.Tensor | None, residual: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """The RMS norm of residual + states, [rows, width]; the sum is left in `residual`. None adds nothing."""
    rows, width = residual.shape
    out = torch.empty_like(residual)
    _add_norm[(rows,)](
        residual if states is None else states, residual, weight, out, epsilon,
        WIDTH=width, BLOCK=triton.next_power_of_2(width), ADD=states is not None, num_warps=8,
    )  # fmt: skip
    return out


def rotate_and_write(
    projected: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    epsilon: float,
    places: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> torch.Tensor:
    """The rotated queries [rows, heads, width]; keys and values go to their places in the pool.

    projected: queries, keys and values side by side, [rows, (heads + 2 * key heads) * width]. cosines, sines: [rows,
    width]. norms: weights of the RMS norms of queries and keys, where a model has them. places: as in
    `PagePool.write_index`. keys, values: [pages, PAGE_TOKENS, key heads, width].
    """
    rows, (key_heads, width) = len(projected), keys.shape[2:]
    heads = projected.shape[1] // width - 2 * key_heads
    query = torch.empty(rows, heads, width, dtype=projected.dtype, device=projected.device)
    query_weight, key_weight = norms or (cosines, cosines)
    _rotate_and_write[(rows, heads + 2 * key_heads)](
        projected, cosines, sines, query_weight, key_weight, places, query, keys, values, epsilon,
        HEADS=heads, KEY_HEADS=key_heads, WIDTH=width, BLOCK=triton.next_power_of_2(width // 2),
        NORM=norms is not None, num_warps=1,
    )  # fmt: skip
    return query


def gate(both: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of the two side by side, [rows, 2 * width]; [rows, width]."""
    rows, width = both.shape[0], both.shape[1] // 2
    out = torch.empty(rows, width, dtype=both.dtype, device=both.device)
    block = min(1024, triton.next_power_of_2(width))
    _gate[(rows, triton.cdiv(width, block))](both, out, WIDTH=width, BLOCK=block, num_warps=4)
    return out
