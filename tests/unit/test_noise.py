import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from speculation.noise import GUMBEL_MAX, GUMBEL_MIN, NOISE_VERSION, Noise, philox4x32, uniform_to_gumbel

VECTORS = json.loads((Path(__file__).parent.parent / "data" / "noise_vectors.json").read_text())


def test_philox_gives_the_known_answers_of_random123() -> None:
    for vector in VECTORS["philox"]:
        low, high = (int(word, 16) for word in vector["key"])
        counter = np.array([[int(word, 16) for word in vector["counter"]]], dtype=np.uint32)
        assert [f"{word:08x}" for word in philox4x32(counter, low | high << 32)[0]] == vector["output"]


def test_noise_equals_the_published_vectors() -> None:
    assert VECTORS["noise_version"] == NOISE_VERSION
    for vector in VECTORS["noise"]:
        noise, tokens = Noise(int(vector["seed"])), np.array(vector["tokens"])
        assert noise.integers(vector["position"], tokens).tolist() == vector["integers"]
        np.testing.assert_allclose(noise.gumbel(vector["position"], tokens), vector["gumbel"], rtol=1e-14)


def test_noise_of_some_tokens_is_the_noise_of_all_tokens() -> None:
    everything = Noise(99).gumbel(17, np.arange(5000))
    some = np.array([4999, 0, 1234, 1235, 77])
    assert np.array_equal(Noise(99).gumbel(17, some), everything[some])


def test_the_range_of_the_noise() -> None:
    ends = uniform_to_gumbel(np.array([0, 2**32 - 1], dtype=np.uint32))
    assert GUMBEL_MIN < ends[0] < GUMBEL_MIN + 1e-3
    assert GUMBEL_MAX - 1e-3 < ends[1] < GUMBEL_MAX


def test_noise_is_gumbel_and_uncorrelated_between_positions_and_seeds() -> None:
    tokens = np.arange(20_000)
    sample = Noise(3).gumbel(8, tokens)
    assert stats.kstest(sample, stats.gumbel_r.cdf).pvalue > 1e-3
    for other in (Noise(3).gumbel(9, tokens), Noise(4).gumbel(8, tokens)):
        assert abs(np.corrcoef(sample, other)[0, 1]) < 0.03


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="unsigned 64-bit"):
        Noise(seed)
