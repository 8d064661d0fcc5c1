"""Strict attention's tiles: a row's bits are the same in tiles of every size, and wherever its pages lie."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from cloud_verifier.engines.pages import PAGE_TOKENS
from cloud_verifier.engines.torch_engine import attention, tile_rows
from cloud_verifier.engines.torch_engine.layout import TILE_ROWS, Layout, Segment
from cloud_verifier.engines.torch_engine.pool import LayerShape, PagePool
from cloud_verifier.engines.torch_engine.tile_rows import least_tile_rows

CPU = torch.device("cpu")
PAGES = 60
SHAPE = LayerShape(heads=2, key_width=16, value_width=16)
HEADS = 8


@pytest.fixture
def pool() -> PagePool:
    torch.manual_seed(4)
    pool = PagePool([SHAPE, SHAPE], PAGES, torch.float32, CPU)
    for layer in (0, 1):
        pool.paged_layer(layer).keys.normal_()
        pool.paged_layer(layer).values.normal_()
    return pool


def moved(pool: PagePool, segments: Sequence[Segment], to: Sequence[Sequence[int]]) -> list[Segment]:
    """The same sequences in other pages."""
    layer = pool.paged_layer(1)
    keys, values = layer.keys.clone(), layer.values.clone()
    result = []
    for segment, pages in zip(segments, to, strict=True):
        used = list(pages[: len(segment.pages)])
        layer.keys[used], layer.values[used] = keys[list(segment.pages)], values[list(segment.pages)]
        result.append(Segment(used, segment.start, segment.rows))
    return result


def attend(pool: PagePool, segments: list[Segment], query: torch.Tensor, least: int = TILE_ROWS) -> torch.Tensor:
    layout = Layout(segments, query.shape[1], CPU, least_tile_rows=least)
    return attention.strict(query, pool.paged_layer(1), layout, None)


SEGMENTS = [
    *(Segment(range(5 * n, 5 * n + 5), 4 * PAGE_TOKENS + 7 + n, 1 + n % 4) for n in range(6)),  # at equal distances
    Segment([40, 30, 33, 37], 2 * PAGE_TOKENS + 60, 9),  # in pieces, over the end of a page
    Segment([50], 5, 3),
    Segment([52], 60, 2),
]


def query_of(segments: Sequence[Segment], padding: int = 0) -> torch.Tensor:
    """[heads, rows, width], a part of each row, as a decoder has it."""
    rows = sum(segment.rows for segment in segments) + padding
    torch.manual_seed(6)
    return torch.randn(rows, HEADS + 3, SHAPE.key_width)[:, :HEADS].transpose(0, 1)


def test_tiles_are_what_plain_attention_is(pool: PagePool) -> None:
    query = query_of(SEGMENTS)
    layout = Layout(SEGMENTS, query.shape[1], CPU)
    expected = attention.plain(query, pool.paged_layer(1), layout, None)
    for least in (1, TILE_ROWS):
        torch.testing.assert_close(attend(pool, SEGMENTS, query, least), expected, atol=1e-5, rtol=1e-5)


def test_rows_have_the_bits_that_they_have_alone_in_place_and_copied(pool: PagePool) -> None:
    segments, least = SEGMENTS, least_tile_rows([SHAPE], HEADS, torch.float32)
    query = query_of(segments, padding=3)
    count = query.shape[1] - 3
    together = attend(pool, segments, query, least)[:count]
    batches = Layout(segments, count, CPU, least_tile_rows=least).batches
    assert any(batch.pages is None and batch.step for batch in batches), "some are read where they lie"
    row = 0
    for segment in segments:
        own = query[:, row : row + segment.rows]
        assert torch.equal(attend(pool, [segment], own, least), together[row : row + segment.rows])
        assert torch.equal(attend(pool, [segment], own), together[row : row + segment.rows]), "in full tiles, too"
        row += segment.rows
    scattered = torch.randperm(PAGES, generator=torch.Generator().manual_seed(1)).tolist()
    to = [[scattered.pop() for _ in segment.pages] for segment in segments]
    elsewhere = moved(pool, segments, to)
    assert all(batch.pages is not None for batch in Layout(elsewhere, count, CPU).batches if batch.keys > PAGE_TOKENS)
    assert torch.equal(attend(pool, elsewhere, query, least)[:count], together)


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_the_fewest_rows_of_a_tile_are_found_by_trying(heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = attention.attended

    def small_tiles_differ(tiles: torch.Tensor, *others: torch.Tensor | None) -> torch.Tensor:
        got = exact(tiles.double(), *(other.double() if other is not None else None for other in others))  # type: ignore[arg-type]
        return got.float() + (1.0 if tiles.shape[2] < 5 * 2 else 0.0)

    shape = LayerShape(heads, 8, 8)
    monkeypatch.setattr(tile_rows, "attended", small_tiles_differ)
    assert least_tile_rows([shape], 2 * heads, torch.float32) == 5
    monkeypatch.setattr(tile_rows, "attended", lambda tiles, *_: exact(tiles, *_) + tiles.shape[2])
    assert least_tile_rows([shape], 2 * heads, torch.float32) == TILE_ROWS


def test_heads_that_cannot_be_grouped_get_full_tiles() -> None:
    assert least_tile_rows([LayerShape(3, 8, 8)], 4, torch.float32) == TILE_ROWS
