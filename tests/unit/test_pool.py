"""Copies of pages: right, and in memory that is kept from one to the next."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import torch
from transformers import PreTrainedModel

from cloud_verifier.engines.pages import PAGE_TOKENS
from cloud_verifier.engines.torch_engine.pool import LayerShape, PagePool, cache_name


def test_pages_are_copied_into_memory_that_is_kept() -> None:
    pool = PagePool(
        [LayerShape(2, 8, 8), LayerShape(2, 8, 8), LayerShape(2, 8, 4)], 9, torch.float32, torch.device("cpu")
    )
    for number in range(3):
        for states in (pool.paged_layer(number).keys, pool.paged_layer(number).values):
            states.normal_()
    places = set()
    for number, wanted in ((0, [3, 1, 7]), (1, [2, 2]), (0, [5, 0, 8])):
        layer, pages = pool.paged_layer(number), torch.tensor(wanted)
        keys, values = layer.gather(pages)
        assert torch.equal(keys, layer.keys[pages])
        assert torch.equal(values, layer.values[pages])
        assert keys.is_contiguous()
        places.add((keys.data_ptr(), values.data_ptr()))
    assert len(places) == 1
    keys, values = pool.paged_layer(2).gather(torch.arange(6))
    assert values.shape == (6, PAGE_TOKENS, 2, 4)
    assert torch.equal(values, pool.paged_layer(2).values[:6])
    assert torch.equal(keys, pool.paged_layer(2).keys[:6])


def test_the_cache_is_called_what_the_model_calls_it() -> None:
    """transformers 5.24 renamed the argument, and means to drop the old name."""

    def before(input_ids: object, past_key_values: object = None) -> None: ...

    def since(input_ids: object, cache: object = None) -> None: ...

    for forward, name in ((before, "past_key_values"), (since, "cache")):
        assert cache_name(cast(PreTrainedModel, SimpleNamespace(forward=forward))) == name
