"""Attention over the pool of pages in a shape that stays: one call for all sequences of a step.

`gathered` is the definition, in plain torch: it copies what each sequence sees, which costs memory and time, and runs
anywhere. `varlen` is torch's own interface to Flash Attention. Which of them an engine uses, or `fused.attention`, is
found by trying: see `parts`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from cloud_verifier.engines.pages import PAGE_TOKENS
from cloud_verifier.engines.torch_engine.static_inputs import StaticLayout

# query [rows, heads, width], keys and values [pages, PAGE_TOKENS, heads, width], layout, scale, and in strict mode how
# many pages are summed up in one piece. Returns [rows, heads, value width].
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, StaticLayout, float | None, int | None], torch.Tensor]


@dataclass(frozen=True)
class Kernel:
    """name: for people and fingerprints. steady: a row's bits depend on what it sees alone, not on a step's shape."""

    name: str
    attend: Attend
    steady: bool


def gathered(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layout: StaticLayout,
    scale: float | None,
    _split_pages: int | None,
) -> torch.Tensor:
    """Returns [rows, heads, value width]."""
    inputs, shape = layout.inputs, layout.inputs.shape
    pages = inputs.table.flatten()

    def seen(states: torch.Tensor) -> torch.Tensor:
        found = states.index_select(0, pages)
        return found.view(shape.sequences, shape.pages * PAGE_TOKENS, *states.shape[2:]).transpose(1, 2)

    heads, width = query.shape[1:]
    grid = query.index_select(0, inputs.row_of).view(shape.sequences, shape.width, heads, width).transpose(1, 2)
    grouped = heads != keys.shape[2]
    out = scaled_dot_product_attention(
        grid, seen(keys), seen(values), layout.mask, scale=scale, enable_gqa=grouped
    ).transpose(1, 2)
    return out.reshape(-1, heads, values.shape[3]).index_select(0, inputs.slots)


def varlen(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layout: StaticLayout,
    scale: float | None,
    split_pages: int | None,
) -> torch.Tensor:
    """As `gathered`. CUDA only, and torch 2.13 at least: before, `varlen_attn` took no table of pages.

    It knows one piece or as many as it likes (`num_splits`), so any `split_pages` means one piece.
    """
    shape = layout.inputs.shape
    out = cast(Any, varlen_attn)(
        query,
        keys,
        values,
        layout.ends,
        None,
        shape.width,
        shape.pages * PAGE_TOKENS,
        scale=scale,
        window_size=(-1, 0),  # causal, counted from the last position that a sequence sees
        enable_gqa=query.shape[1] != keys.shape[2],
        seqused_k=layout.seen,
        block_table=layout.table,
        num_splits=None if split_pages is None else 1,
    )
    assert isinstance(out, torch.Tensor)
    return out.masked_fill(layout.padding, 0.0)  # rows of no sequence are left as they were found in memory


GATHERED = Kernel("gathered", gathered, steady=False)
FLASH = Kernel("Flash Attention", varlen, steady=False)
