"""Where everything lies in one packed forward: worked out once, used by every layer.

The new tokens of all sequences are laid end to end as rows. For strict attention rows are cut into tiles: at most
`TILE_ROWS` rows of one sequence, padded to exactly that many, that see the first pages of their sequence as a whole.
Every kernel thus meets one query shape, whatever the block, and as many keys as the position alone tells: no tile
reaches across the end of a page, because MKL sums over 192 and over 256 keys in different orders even where the last 64
weigh nothing. Tiles that see equally many pages run as one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from cloud_verifier.engines.pages import PAGE_TOKENS
from cloud_verifier.engines.sampling.upload import upload

TILE_ROWS = 8


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of one sequence: `rows` tokens for positions start, start + 1, ...; pages: all it has."""

    pages: Sequence[int]
    start: int
    rows: int

    @property
    def places(self) -> list[int]:
        """Where in the pool its rows are: page * PAGE_TOKENS + place in the page."""
        positions = range(self.start, self.start + self.rows)
        return [self.pages[at // PAGE_TOKENS] * PAGE_TOKENS + at % PAGE_TOKENS for at in positions]


class TileBatch(NamedTuple):
    """Tiles first .. last - 1 of a layout, which all see `keys` positions.

    lone: all are of one sequence. run: the first page, where all that a lone sequence sees lies in one piece. pages:
    what they see, one sequence after the other (a lone one once), int64 on the device, None for a run.
    """

    first: int
    last: int
    keys: int
    lone: bool
    run: int | None
    pages: torch.Tensor | None


class _Tile(NamedTuple):
    keys: int
    row: int  # of its first token
    segment: int
    start: int  # position of its first token
    rows: int


class HeadIndex(NamedTuple):
    """How rows and heads are regrouped for grouped-query attention, as indices into flattened states.

    gather: [tiles * kv_heads * TILE_ROWS * group], from [rows * heads] queries to tiles in which all the query heads
    that share a key head are rows of one matrix. scatter: [rows * heads], back from [tiles * TILE_ROWS * group *
    kv_heads].
    """

    gather: torch.Tensor
    scatter: torch.Tensor


class Layout:
    """One packed forward.

    rows: tokens plus padding rows. positions: int64 [1, rows]. write_index: place in the pool of each token, [tokens].
    copies: rows that are written once more, and where, int64 [2, copies]; None if there are none.
    """

    def __init__(
        self, segments: list[Segment], rows: int, device: torch.device, copies: Sequence[tuple[int, int]] = ()
    ) -> None:
        self.segments = segments
        self.rows = rows
        self._device = device
        places = [place for s in segments for place in s.places]
        positions = [s.start + i for s in segments for i in range(s.rows)]
        self.tokens = len(positions)
        packed = upload([places, positions], torch.int64, device)
        self.write_index = packed[0]
        self.positions = pad(packed[1:], (0, rows - self.tokens))
        self.copies = (
            upload([list(part) for part in zip(*copies, strict=True)], torch.int64, device) if copies else None
        )
        self._tiles: list[_Tile] = []
        self._batches: list[TileBatch] = []
        self._heads: dict[tuple[int, int], HeadIndex] = {}
        self._masks: dict[tuple[int, torch.dtype], list[torch.Tensor]] = {}
        self._segment_pages: list[torch.Tensor] = []
        self._segment_masks: list[torch.Tensor | None] | None = None

    @property
    def tiles(self) -> list[_Tile]:
        """Tiles in the order of the batches."""
        if not self._tiles:
            row = 0
            for number, segment in enumerate(self.segments):
                start, end = segment.start, segment.start + segment.rows
                while start < end:
                    keys = (start // PAGE_TOKENS + 1) * PAGE_TOKENS
                    count = min(TILE_ROWS, end - start, keys - start)
                    self._tiles.append(_Tile(keys, row, number, start, count))
                    start, row = start + count, row + count
            self._tiles.sort()
        return self._tiles

    @property
    def batches(self) -> list[TileBatch]:
        """The tiles, batched by how many positions they see."""
        if not self._batches:
            first = 0
            for keys, group in groupby(self.tiles, key=lambda tile: tile.keys):
                owners = [tile.segment for tile in group]
                self._batches.append(self._batch(first, keys, owners))
                first += len(owners)
        return self._batches

    def _batch(self, first: int, keys: int, owners: list[int]) -> TileBatch:
        last, count = first + len(owners), keys // PAGE_TOKENS
        lone = owners[0] == owners[-1]
        seen = [page for owner in (owners[:1] if lone else owners) for page in self.segments[owner].pages[:count]]
        if lone and seen == list(range(seen[0], seen[0] + count)):
            return TileBatch(first, last, keys, lone, seen[0], None)
        return TileBatch(first, last, keys, lone, None, upload(seen, torch.int64, self._device))

    def head_index(self, heads: int, kv_heads: int) -> HeadIndex:
        """See `HeadIndex`; heads is a multiple of kv_heads."""
        if (heads, kv_heads) not in self._heads:
            group = heads // kv_heads
            # A tile's padding rows repeat its last token, so that they compute something finite that nobody reads.
            tile_rows = torch.tensor([[t.row + min(j, t.rows - 1) for j in range(TILE_ROWS)] for t in self.tiles])
            head = torch.arange(heads).view(1, kv_heads, 1, group)
            gather = tile_rows.view(-1, 1, TILE_ROWS, 1) * heads + head
            where = torch.zeros(self.rows, dtype=torch.int64)
            for number, tile in enumerate(self.tiles):
                where[tile.row : tile.row + tile.rows] = torch.arange(tile.rows) + number * TILE_ROWS
            kv_head, member = torch.arange(heads) // group, torch.arange(heads) % group
            scatter = (where[:, None] * group + member) * kv_heads + kv_head
            device = self._device
            self._heads[heads, kv_heads] = HeadIndex(
                upload(gather.flatten(), torch.int64, device), upload(scatter.flatten(), torch.int64, device)
            )
        return self._heads[heads, kv_heads]

    def tile_masks(self, group: int, dtype: torch.dtype) -> list[torch.Tensor]:
        """For each batch what is added to the scores: 0 or -inf, [tiles, 1, TILE_ROWS * group, keys]."""
        if (group, dtype) not in self._masks:
            seen = torch.tensor([[t.start + min(j, t.rows - 1) for j in range(TILE_ROWS)] for t in self.tiles])
            seen = upload(seen.repeat_interleave(group, dim=1), torch.int64, self._device)[:, None, :, None]
            masks = []
            for batch in self.batches:
                hidden = torch.arange(batch.keys, device=self._device) > seen[batch.first : batch.last]
                mask = torch.zeros(hidden.shape, dtype=dtype, device=self._device)
                masks.append(mask.masked_fill_(hidden, float("-inf")))
            self._masks[group, dtype] = masks
        return self._masks[group, dtype]

    def segment_pages(self) -> list[torch.Tensor]:
        """For each segment the pages that hold what its rows see, int64."""
        if not self._segment_pages:
            self._segment_pages = [
                upload(s.pages[: -(-(s.start + s.rows) // PAGE_TOKENS)], torch.int64, self._device)
                for s in self.segments
            ]
        return self._segment_pages

    def segment_masks(self) -> list[torch.Tensor | None]:
        """For each segment which of its positions each row sees, bool [rows, start + rows]; None for a single row."""
        if self._segment_masks is None:
            self._segment_masks = [
                torch.ones(s.rows, s.start + s.rows, dtype=torch.bool, device=self._device).tril(s.start)
                if s.rows > 1
                else None
                for s in self.segments
            ]
        return self._segment_masks
