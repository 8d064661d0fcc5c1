"""The likeliest tokens of a row, against a full sort."""

from __future__ import annotations

import numpy as np
import pytest

from edge_client.drafters.base import DrafterError
from edge_client.drafters.top_candidates import top_candidates


@pytest.mark.parametrize("size", [1, 63, 64, 65, 4096, 8193, 32_000, 128_256, 151_937])
@pytest.mark.parametrize("count", [1, 7, 64, 200])
def test_same_as_a_full_sort(size: int, count: int) -> None:
    row = np.random.default_rng(size).permutation(size).astype(np.float32) / 1000
    found = top_candidates(row, count)
    exact = row.astype(np.float64)
    np.testing.assert_array_equal(found.ids, np.argsort(-exact)[:count])
    log_q = exact - exact.max() - np.log(np.exp(exact - exact.max()).sum())
    np.testing.assert_allclose(found.log_probs, log_q[found.ids], atol=2e-5)


def test_half_precision_logits_count_as_the_numbers_they_are() -> None:
    row = np.random.default_rng(0).permutation(1000).astype(np.float16) / 64
    half, full = top_candidates(row, 20), top_candidates(row.astype(np.float32), 20)
    assert half.ids.tolist() == full.ids.tolist()
    assert half.log_probs.tolist() == full.log_probs.tolist()


def test_largest_entries_that_share_a_column_or_lie_past_the_last_fold() -> None:
    row = np.zeros(64 * 500 + 3, np.float32)
    largest = [7 + 500 * i for i in range(10)] + [64 * 500 + 1]
    row[largest] = np.arange(11, 0, -1)
    np.testing.assert_array_equal(top_candidates(row, 11).ids, largest)


def test_ties_come_in_the_order_of_ids() -> None:
    np.testing.assert_array_equal(top_candidates(np.array([1, 2, 1, 2, 1], np.float32), 5).ids, [1, 3, 0, 2, 4])


def test_excluded_tokens_may_have_no_probability() -> None:
    found = top_candidates(np.array([0, -np.inf, 1], np.float32), 3)
    assert found.ids.tolist() == [2, 0, 1]
    assert found.log_probs[2] == -np.inf


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_damaged_logits_are_refused(bad: float) -> None:
    row = np.zeros(100, np.float32)
    row[50] = bad
    with pytest.raises(DrafterError, match="finite"):
        top_candidates(row, 8)
