"""Where everything lies in one packed forward: worked out once, used by every layer.

The new tokens of all sequences are laid end to end as rows. For strict attention rows are cut into tiles: at most
`TILE_ROWS` rows of one sequence, padded to as many as agree bit by bit with a full tile (`tile_rows` finds out), that
see the first pages of their sequence as a whole. Every kernel thus meets query shapes that agree, whatever the block,
and as many keys as the position alone tells: no tile reaches across the end of a page, because MKL sums over 192 and
over 256 keys in different orders even where the last 64 weigh nothing.

Tiles that see equally many pages run in batches. Keys and values are read where they lie if each sequence's lie in one
piece, and the pieces at equal distances; elsewhere they are copied, but no more at a time than a cache holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from cloud_verifier.engines.pages import PAGE_TOKENS
from cloud_verifier.engines.sampling.upload import upload

TILE_ROWS = 8
LEAST_PAGES_IN_PLACE = 4  # a batch of fewer is copied with others: a call takes as long as copying so many
MOST_PAGES_GATHERED = 16


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
    """Tiles first .. last - 1 of a layout, of `rows` rows each, which all see `keys` positions.

    Where what each sees lies in one piece, and these pieces at equal distances: start, the first page of the first
    tile, and step, to that of the next; 0 if all see the same. Elsewhere pages: what they see, one tile after the
    other (lone: only once, all see the same), int64 on the device.
    """

    first: int
    last: int
    rows: int
    keys: int
    start: int = 0
    step: int = 0
    lone: bool = False
    pages: torch.Tensor | None = None


class _Tile(NamedTuple):
    keys: int
    size: int  # rows, with padding
    row: int  # of its first token
    segment: int
    start: int  # position of its first token
    rows: int

    def repeated(self, first: int) -> list[int]:
        """first, first + 1, ... for its rows; padding rows repeat the last token, so that they compute something
        finite that nobody reads."""
        return [first + min(row, self.rows - 1) for row in range(self.size)]


class HeadIndex(NamedTuple):
    """How rows and heads are regrouped for grouped-query attention, as indices into flattened states.

    gather: from queries, [rows * pitch], to tiles in which all the query heads that share a key head are rows of one
    matrix, [padded rows * heads]. scatter: [rows * heads], back from [padded rows * group * kv_heads].
    """

    gather: torch.Tensor
    scatter: torch.Tensor


class Layout:
    """One packed forward.

    rows: tokens plus padding rows. positions: int64 [1, rows]. write_index: place in the pool of each token, [tokens].
    copies: rows that are written once more, and where, int64 [2, copies]; None if there are none.
    """

    def __init__(
        self,
        segments: list[Segment],
        rows: int,
        device: torch.device,
        copies: Sequence[tuple[int, int]] = (),
        least_tile_rows: int = TILE_ROWS,
    ) -> None:
        """least_tile_rows: tiles of fewer rows than `TILE_ROWS` agree with those bit by bit, down to so many."""
        self.segments = segments
        self.rows = rows
        self._least = least_tile_rows
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
        self._heads: dict[tuple[int, int, int], HeadIndex] = {}
        self._masks: dict[tuple[int, torch.dtype], list[torch.Tensor]] = {}
        self._segment_pages: list[torch.Tensor] = []
        self._segment_masks: list[torch.Tensor | None] | None = None

    @property
    def batches(self) -> list[TileBatch]:
        """The tiles, in batches of those that see equally many positions."""
        if not self._batches:
            tiles = sorted(self._cut_tiles())
            for (keys, size), group in groupby(tiles, key=lambda tile: tile[:2]):
                by_segment = [list(own) for _, own in groupby(group, key=lambda tile: tile.segment)]
                if len(by_segment) == 1:
                    self._batch_of_one(keys, size, by_segment[0])
                    continue
                singles = [own[0] for own in by_segment if len(own) == 1]
                for own in by_segment:
                    if len(own) > 1:
                        self._batch_of_one(keys, size, own)
                self._batch_of_many(keys, size, singles)
        return self._batches

    def _cut_tiles(self) -> Iterator[_Tile]:
        row = 0
        for number, segment in enumerate(self.segments):
            start, end = segment.start, segment.start + segment.rows
            while start < end:
                keys = (start // PAGE_TOKENS + 1) * PAGE_TOKENS
                count = min(TILE_ROWS, end - start, keys - start)
                yield _Tile(keys, max(count, self._least), row, number, start, count)
                start, row = start + count, row + count

    def _batch_of_one(self, keys: int, size: int, tiles: Sequence[_Tile]) -> None:
        """Tiles of one sequence."""
        seen = self._seen(tiles[0])
        if _is_run(seen):
            self._add(tiles, TileBatch(0, 0, size, keys, seen[0]))
        else:
            self._add(tiles, TileBatch(0, 0, size, keys, lone=True, pages=upload(seen, torch.int64, self._device)))

    def _batch_of_many(self, keys: int, size: int, tiles: Sequence[_Tile]) -> None:
        """Tiles of as many sequences."""
        count = keys // PAGE_TOKENS
        scattered = [tile for tile in tiles if not _is_run(self._seen(tile))]
        runs = sorted((self._seen(tile)[0], tile) for tile in tiles if _is_run(self._seen(tile)))
        while runs:
            step = runs[1][0] - runs[0][0] if len(runs) > 1 else 0
            equal = 1
            while equal < len(runs) and runs[equal][0] == runs[0][0] + equal * step:
                equal += 1
            taken, runs = runs[:equal], runs[equal:]
            own = [tile for _, tile in taken]
            if equal * count < LEAST_PAGES_IN_PLACE:
                scattered += own
            else:
                self._add(own, TileBatch(0, 0, size, keys, taken[0][0], step))
        together = max(1, MOST_PAGES_GATHERED // count)
        for first in range(0, len(scattered), together):
            own = scattered[first : first + together]
            pages = [page for tile in own for page in self._seen(tile)]
            self._add(own, TileBatch(0, 0, size, keys, pages=upload(pages, torch.int64, self._device)))

    def _seen(self, tile: _Tile) -> Sequence[int]:
        return self.segments[tile.segment].pages[: tile.keys // PAGE_TOKENS]

    def _add(self, tiles: Sequence[_Tile], batch: TileBatch) -> None:
        first = len(self._tiles)
        self._tiles += tiles
        self._batches.append(batch._replace(first=first, last=len(self._tiles)))

    def head_index(self, heads: int, kv_heads: int, pitch: int) -> HeadIndex:
        """See `HeadIndex`; heads is a multiple of kv_heads. pitch: how many heads' states the queries have in a row."""
        if (heads, kv_heads, pitch) not in self._heads:
            group = heads // kv_heads
            gather, where, done = [], torch.zeros(self.rows, dtype=torch.int64), 0
            for batch in self.batches:
                tiles = self._tiles[batch.first : batch.last]
                head = torch.arange(heads).view(1, kv_heads, 1, group)
                rows = torch.tensor([tile.repeated(tile.row) for tile in tiles])
                gather.append((rows.view(-1, 1, batch.rows, 1) * pitch + head).flatten())
                for tile in tiles:
                    where[tile.row : tile.row + tile.rows] = torch.arange(done, done + tile.rows)
                    done += batch.rows
            kv_head, member = torch.arange(heads) // group, torch.arange(heads) % group
            scatter = (where[:, None] * group + member) * kv_heads + kv_head
            device = self._device
            self._heads[heads, kv_heads, pitch] = HeadIndex(
                upload(torch.cat(gather), torch.int64, device), upload(scatter.flatten(), torch.int64, device)
            )
        return self._heads[heads, kv_heads, pitch]

    def tile_masks(self, group: int, dtype: torch.dtype) -> list[torch.Tensor]:
        """For each batch what is added to the scores: 0 or -inf, [tiles, 1, rows * group, keys]."""
        if (group, dtype) not in self._masks:
            masks = []
            for batch in self.batches:
                seen = torch.tensor([tile.repeated(tile.start) for tile in self._tiles[batch.first : batch.last]])
                seen = upload(seen.repeat_interleave(group, dim=1), torch.int64, self._device)[:, None, :, None]
                hidden = torch.arange(batch.keys, device=self._device) > seen
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


def _is_run(pages: Sequence[int]) -> bool:
    return all(page == pages[0] + place for place, page in enumerate(pages))
