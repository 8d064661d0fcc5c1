import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_verifier.engines.sampling.noise import RowNoise, gumbel, philox
from speculation.noise import GUMBEL_MAX, GUMBEL_MIN, Noise, round_keys

VECTORS = json.loads((Path(__file__).parent.parent / "data" / "noise_vectors.json").read_text())
CPU = torch.device("cpu")
SEEDS = st.integers(0, 2**64 - 1)
POSITIONS = st.integers(0, 2**32 - 1)


def test_philox_gives_the_known_answers_of_random123() -> None:
    for vector in VECTORS["philox"]:
        low, high = (int(word, 16) for word in vector["key"])
        keys = torch.from_numpy(round_keys(low | high << 32).astype(np.int64))
        a, b, c, d = (torch.tensor([int(word, 16)]) for word in vector["counter"])
        assert [f"{int(word):08x}" for word in philox((a, b, c, d), keys)] == vector["output"]


def test_noise_equals_the_published_vectors() -> None:
    for vector in VECTORS["noise"]:
        tokens = torch.tensor(vector["tokens"])
        noise = RowNoise([int(vector["seed"])], [vector["position"]], CPU)
        integers = noise.integers(torch.zeros_like(tokens), tokens)
        assert integers.tolist() == vector["integers"]
        np.testing.assert_allclose(gumbel(integers).numpy(), vector["gumbel"], rtol=1e-14)


@settings(max_examples=50)
@given(st.lists(st.tuples(SEEDS, POSITIONS), min_size=1, max_size=5), st.integers(1, 300))
def test_integers_equal_those_of_numpy(rows: list[tuple[int, int]], size: int) -> None:
    noise = RowNoise([seed for seed, _ in rows], [position for _, position in rows], CPU)
    everything = noise.all_integers(size)
    assert everything.shape == (len(rows), size)
    for number, (seed, position) in enumerate(rows):
        expected = Noise(seed).integers(position, np.arange(size))
        assert everything[number].tolist() == expected.tolist()
    row_of = torch.arange(len(rows)).repeat_interleave(3)
    token_of = torch.tensor([0, size - 1, size // 2]).repeat(len(rows))
    assert noise.integers(row_of, token_of).tolist() == everything[row_of, token_of].tolist()


def test_the_noise_of_a_row_does_not_depend_on_its_company() -> None:
    rows = [(seed, position) for seed in (1, 2**64 - 1) for position in range(7)]
    together = gumbel(RowNoise([s for s, _ in rows], [p for _, p in rows], CPU).all_integers(4099))
    for number, (seed, position) in enumerate(rows):
        alone = RowNoise([seed], [position], CPU)
        assert torch.equal(gumbel(alone.all_integers(4099))[0], together[number])
        some = torch.tensor([4098, 7, 7, 0, 2111])
        assert torch.equal(gumbel(alone.integers(torch.zeros_like(some), some)), together[number, some])


def test_the_range_of_the_noise() -> None:
    low, high = gumbel(torch.tensor([0, 2**32 - 1])).tolist()
    assert GUMBEL_MIN < low < GUMBEL_MIN + 1e-3
    assert GUMBEL_MAX - 1e-3 < high < GUMBEL_MAX


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="unsigned 64-bit"):
        RowNoise([seed], [0], CPU)
