"""How few rows a tile of strict attention may have on this machine, found by trying.

The bits of a row of a small matrix product may depend on how many rows there are: with MKL on fewer than four, mostly.
A full tile is the measure. What is tried here says which sizes are worth the self-test; the self-test decides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cloud_verifier.engines.pages import PAGE_TOKENS
from cloud_verifier.engines.torch_engine.attention import attended
from cloud_verifier.engines.torch_engine.layout import TILE_ROWS
from cloud_verifier.engines.torch_engine.pool import LayerShape

TRIED_PAGES = (1, 2, 3, 4, 5, 8, 9, 16, 17)


@torch.inference_mode()
def least_tile_rows(shapes: Sequence[LayerShape], heads: int, dtype: torch.dtype) -> int:
    """The fewest rows from which on every size gives the bits of a full tile. heads: of queries. On a CPU."""
    if any(heads % shape.heads for shape in shapes):
        return TILE_ROWS  # there is more to these heads than their number
    least = TILE_ROWS
    while least > 1 and all(
        _agrees(shape, heads // shape.heads, dtype, pages, least - 1)
        for shape in dict.fromkeys(shapes)
        for pages in TRIED_PAGES
    ):
        least -= 1
    return least


def _agrees(shape: LayerShape, group: int, dtype: torch.dtype, pages: int, rows: int) -> bool:
    chance = torch.Generator().manual_seed(17)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=chance).to(dtype)

    count = pages * PAGE_TOKENS
    keys, values = (
        random(1, count, shape.heads, width).transpose(1, 2) for width in (shape.key_width, shape.value_width)
    )
    queries = random(1, shape.heads, TILE_ROWS, group, shape.key_width)
    seen = torch.arange(count - TILE_ROWS, count).repeat_interleave(group)
    mask = torch.zeros(1, 1, len(seen), count, dtype=dtype)
    mask = mask.masked_fill_(torch.arange(count) > seen[:, None], float("-inf"))

    def tile(first: int, last: int) -> torch.Tensor:
        part = queries[:, :, first:last].reshape(1, shape.heads, -1, shape.key_width)
        return attended(part, keys, values, mask[:, :, first * group : last * group].contiguous(), None)

    whole = tile(0, TILE_ROWS)
    return all(
        torch.equal(tile(first, first + rows), whole[:, first * group : (first + rows) * group])
        for first in range(TILE_ROWS - rows + 1)
    )
