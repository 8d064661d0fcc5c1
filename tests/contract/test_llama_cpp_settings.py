"""What llama.cpp can be told, and models that go back to a state kept from before: Mamba and LFM2."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.drafters.base import DrafterError
from edge_client.drafters.llama_cpp import rollback
from edge_client.drafters.llama_cpp.drafter import LlamaCppDrafter
from edge_client.drafters.llama_cpp.rollback import StateRollback
from edge_client.drafters.settings import DeviceSettings, FlashAttention, KvType, Weights
from outrider_models import memory_check
from tests.contract.tiny_models import CONTEXT_TOKENS, save_hybrid_gguf, save_recurrent_gguf

Made = Callable[[str], Path]
TOKENS = [int(token) for token in np.random.default_rng(2).integers(0, 250, 60)]
SMALL_IDS = 32
DEMO = Path(__file__).resolve().parents[2] / "models" / "demo" / "drafter.gguf"


@pytest.mark.parametrize("weights", Weights)
@pytest.mark.parametrize("threads", [1, 2])
def test_however_weights_are_held_the_words_are_the_same(made: Made, weights: Weights, threads: int) -> None:
    plain = LlamaCppDrafter(made("gguf-f32"))
    told = LlamaCppDrafter(made("gguf-f32"), threads=threads, settings=DeviceSettings(weights=weights))
    for drafter in (plain, told):
        drafter.feed(TOKENS)
    np.testing.assert_allclose(plain.candidates().log_probs, told.candidates().log_probs, atol=1e-4)
    assert told.info.runs_on == "llama.cpp, all layers on the CPU"
    plain.close()
    told.close()


@pytest.mark.parametrize(
    ("kv_type", "flash_attention", "tolerance"),
    [
        (KvType.F16, FlashAttention.ON, 0.05),
        (KvType.F16, FlashAttention.OFF, 0.05),
        (KvType.Q8_0, FlashAttention.AUTO, 0.5),
        (KvType.Q4_0, FlashAttention.AUTO, 1.0),
    ],
)
def test_smaller_caches_say_nearly_the_same(
    made: Made, kv_type: KvType, flash_attention: FlashAttention, tolerance: float
) -> None:
    path = made("gguf-f32") if kv_type is KvType.F16 else DEMO  # the tiny model's heads are half a block wide
    plain = LlamaCppDrafter(path)
    told = LlamaCppDrafter(path, settings=DeviceSettings(kv_type=kv_type, flash_attention=flash_attention))
    for drafter in (plain, told):
        drafter.feed(TOKENS)
        drafter.rollback(30)
        drafter.feed(TOKENS[30:])
    found, expected = told.candidates(), plain.candidates()
    assert found.ids[0] == expected.ids[0]
    np.testing.assert_allclose(found.log_probs[:8], expected.log_probs[:8], atol=tolerance)
    plain.close()
    told.close()


def test_a_cache_that_does_not_fit_the_heads_is_refused_with_llama_cpps_words(made: Made) -> None:
    with pytest.raises(DrafterError, match=r"cannot make a context of .*(block size|divide|quantized)"):
        LlamaCppDrafter(made("gguf-f32"), settings=DeviceSettings(kv_type=KvType.Q4_0))


def test_layers_for_a_gpu_that_is_not_there_leave_a_notice(made: Made) -> None:
    drafter = LlamaCppDrafter(made("gguf-f32"), settings=DeviceSettings(gpu_layers=-1))
    if drafter.info.runs_on.endswith("on the CPU"):
        assert "built without a GPU backend" in drafter.info.notices[0]
    drafter.feed([1, 2])
    drafter.close()


def test_a_model_that_does_not_fit_is_not_loaded(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_check, "available_bytes", lambda: 100_000)
    with pytest.raises(DrafterError, match=r"gguf-f32\.gguf does not fit into memory"):
        LlamaCppDrafter(made("gguf-f32"))


def test_a_quantization_that_llama_cpp_does_not_know(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "new.gguf", "llama")
    writer.add_tensor("a", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = bytearray((tmp_path / "new.gguf").read_bytes())
    at = content.index(b"\x01\0\0\0\0\0\0\0a") + 9 + 4 + 16
    content[at : at + 4] = (99).to_bytes(4, "little")
    (tmp_path / "new.gguf").write_bytes(content)
    with pytest.raises(DrafterError, match=r"tensors of type 99, a quantization that .* does not know; update"):
        LlamaCppDrafter(tmp_path / "new.gguf")


# --- models with a state ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[save_recurrent_gguf, save_hybrid_gguf], ids=["recurrent", "hybrid"])
def stateful(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stateful") / "model.gguf"
    request.param(path)
    return path


@pytest.fixture
def drafter(stateful: Path) -> Iterator[LlamaCppDrafter]:
    opened = LlamaCppDrafter(stateful)
    yield opened
    opened.close()


def fresh_log_probs(stateful: Path, tokens: list[int]) -> np.ndarray:
    fresh = LlamaCppDrafter(stateful)
    fresh.feed(tokens)
    found = fresh.candidates().log_probs
    fresh.close()
    return found


def test_a_recurrent_model_goes_back_to_a_state(stateful: Path, drafter: LlamaCppDrafter) -> None:
    tokens = [token % SMALL_IDS for token in TOKENS]
    for token in tokens[:20]:
        drafter.feed([token])
    drafter.rollback(12)
    drafter.feed([5])
    np.testing.assert_allclose(drafter.candidates().log_probs, fresh_log_probs(stateful, [*tokens[:12], 5]), atol=1e-4)


def test_far_back_it_evaluates_again(stateful: Path, drafter: LlamaCppDrafter) -> None:
    tokens = [token % SMALL_IDS for token in TOKENS * 10]
    drafter.feed(tokens[:300])
    for token in tokens[300:400]:
        drafter.feed([token])
    assert isinstance(drafter._past, StateRollback)
    assert len(drafter._past._states) == rollback._MOST_STATES
    for length in (399, 320, 290, 100, 1, 0):
        drafter.rollback(length)
        drafter.feed([7])
        expected = fresh_log_probs(stateful, [*tokens[:length], 7])
        np.testing.assert_allclose(drafter.candidates().log_probs, expected, atol=1e-2)
        drafter.rollback(length)


Steps = st.lists(st.one_of(st.lists(st.integers(0, 31), min_size=1, max_size=9), st.floats(0, 1)), max_size=25)


@settings(max_examples=25)
@given(steps=Steps, most=st.integers(2, 5))
def test_any_way_there_is_the_same_place(stateful: Path, steps: list[list[int] | float], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollback, "_MOST_STATES", most)
        patch.setattr(rollback, "_MILESTONE_TOKENS", 8)
        drafter, held = LlamaCppDrafter(stateful), list[int]()
        for step in steps:
            if isinstance(step, list):
                drafter.feed(step)
                held += step
            else:
                keep = round(step * len(held))
                drafter.rollback(keep)
                del held[keep:]
        drafter.feed([3])
        found = drafter.candidates().log_probs
        drafter.close()
    np.testing.assert_allclose(found, fresh_log_probs(stateful, [*held, 3]), atol=1e-2)


def test_it_reads_blocks_and_refuses_garbage_as_others_do(stateful: Path, drafter: LlamaCppDrafter) -> None:
    tokens = [token % SMALL_IDS for token in TOKENS]
    found = drafter.feed_block(tokens[:10], 4)
    for count, candidates in zip(itertools.count(7), found, strict=False):
        np.testing.assert_allclose(candidates.log_probs, fresh_log_probs(stateful, tokens[:count]), atol=1e-2)
    with pytest.raises(ValueError, match="outside"):
        drafter.feed([SMALL_IDS])
    with pytest.raises(DrafterError, match="cannot take"):
        drafter.feed([1] * CONTEXT_TOKENS)
    assert drafter.length == 10
