"""Our own kernels for GPUs, run by Triton's interpreter on a CPU, against plain torch and against transformers.

The interpreter computes what a kernel says, in float32 and float16; it knows no bfloat16 products, no threads and no
registers. That the kernels compile for a Hopper GPU is tried too, as far as that goes without one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb
from transformers.models.qwen2 import Qwen2ForCausalLM
from transformers.models.qwen3 import Qwen3ForCausalLM

from cloud_verifier.engines.base import Block, EngineInfo, Sampler
from cloud_verifier.engines.pages import PAGE_TOKENS
from cloud_verifier.engines.sampling import sampler
from cloud_verifier.engines.torch_engine import TorchEngine
from cloud_verifier.engines.torch_engine.fast_path import TRIAL_TOLERANCE, disagreement, draws_alike, fused_parts
from cloud_verifier.engines.torch_engine.kernels import gathered
from cloud_verifier.engines.torch_engine.layout import Segment
from cloud_verifier.engines.torch_engine.llama_like import why_not
from cloud_verifier.engines.torch_engine.load import wrap
from cloud_verifier.engines.torch_engine.pool import LayerShape, PagePool, layer_shapes
from cloud_verifier.engines.torch_engine.row_rules import RowRule
from cloud_verifier.engines.torch_engine.static_inputs import Inputs, StaticLayout, fill, shape_of
from speculation.sampling import SamplingParams

pytest.importorskip("triton", reason="Triton is for Linux on x86-64 here")

from cloud_verifier.engines.torch_engine.fused.attention import fused
from cloud_verifier.engines.torch_engine.fused.decoder import FusedDecoder
from cloud_verifier.engines.torch_engine.fused.draw import draw
from cloud_verifier.engines.torch_engine.fused.layers import add_norm, gate, rotate_and_write

CPU = torch.device("cpu")
SEGMENTS = [Segment([3, 1], 60, 9), Segment([0], 12, 1), Segment([2, 5, 4], 130, 4), Segment([6, 7, 8], 150, 30)]
SPARE, PAGES = 9, 10
HALVES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16])


def layout_of(segments: list[Segment], *, steady: bool) -> StaticLayout:
    count = sum(segment.rows for segment in segments)
    shape = shape_of(segments, 0, False, RowRule(1, 64), 4, strict=False, steady=steady)
    return StaticLayout(Inputs(shape, fill(shape, segments, [0] * count, [], [], SPARE, False)))


def pool(heads: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = torch.randn(2, PAGES, PAGE_TOKENS, heads, width, dtype=dtype)
    return keys, values


@pytest.mark.parametrize(
    ("heads", "key_heads", "width", "dtype"),
    [(4, 2, 16, torch.float32), (4, 2, 16, torch.float16), (7, 1, 24, torch.float32), (2, 2, 32, torch.float32)],
)
def test_attention_is_what_its_definition_says(heads: int, key_heads: int, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    keys, values = pool(key_heads, width, dtype)
    count = sum(segment.rows for segment in SEGMENTS)
    query = torch.randn(64, heads, width, dtype=dtype)
    expected = gathered(query, keys, values, layout_of(SEGMENTS, steady=False), 0.3, None)[:count]
    for split_pages in (None, 1, 4):
        got = fused(query, keys, values, layout_of(SEGMENTS, steady=True), 0.3, split_pages)
        torch.testing.assert_close(got[:count], expected, atol=2e-3 if dtype == torch.float16 else 1e-5, rtol=1e-3)
        assert not got[count:].any(), "rows of no sequence are 0"


@pytest.fixture
def steady_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies with NumPy's BLAS, which adds up rows in an order of their place: not so a GPU."""

    def matmul(one: np.ndarray, other: np.ndarray, dtype: Any) -> np.ndarray:
        products: np.ndarray = (one[:, :, None] * other[None]).sum(1, dtype=dtype)
        return products

    monkeypatch.setattr(np, "matmul", matmul)


@pytest.mark.usefixtures("steady_products")
def test_a_row_has_the_same_bits_in_any_company_and_cut() -> None:
    torch.manual_seed(0)
    keys, values = pool(2, 16, torch.float32)
    query = torch.randn(64, 4, 16)
    for split_pages in (1, 2):
        together = fused(query, keys, values, layout_of(SEGMENTS, steady=True), None, split_pages)
        row = 0
        for segment in SEGMENTS:
            rows, layout = query[row : row + segment.rows], layout_of([segment], steady=True)
            padded = torch.zeros(layout.inputs.shape.rows, 4, 16)
            padded[: segment.rows] = rows
            alone = fused(padded, keys, values, layout, None, split_pages)
            assert torch.equal(alone[: segment.rows], together[row : row + segment.rows])
            last = Segment(segment.pages, segment.start + segment.rows - 1, 1)
            singly = fused(rows[-1:].repeat(8, 1, 1), keys, values, layout_of([last], steady=True), None, split_pages)
            assert torch.equal(singly[0], together[row + segment.rows - 1])
            row += segment.rows


def test_what_lies_beyond_a_sequence_is_not_seen() -> None:
    torch.manual_seed(0)
    keys, values = pool(2, 16, torch.float32)
    query = torch.randn(8, 4, 16)
    layout = layout_of([Segment([3, 1], 60, 3)], steady=True)
    clean = fused(query, keys, values, layout, None, 1)
    keys[3, 63:], keys[1], values[1] = 1e4, 1e4, torch.nan
    assert torch.equal(fused(query, keys, values, layout, None, 1)[:3], clean[:3])


def test_the_trial_at_start_passes() -> None:
    kernel = fused_parts(layers=False).kernel
    assert disagreement(kernel, LayerShape(2, 16, 16), 4, torch.float16, CPU) < TRIAL_TOLERANCE
    assert draws_alike(draw, torch.float16, CPU)


@HALVES
def test_tokens_are_drawn_as_defined(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = torch.randn(7, 4099).to(dtype) * 3
    seeds = torch.tensor([0, -1, -(2**63), 17, 2**32, 3, 1234567890123456789])
    positions, temperatures = torch.arange(7) * 1000, torch.tensor([0.0, 0.3, 0.8, 1.0, 2.5, 0.0, 1.3]).double()
    assert torch.equal(
        draw(logits, seeds, positions, temperatures), sampler.draw(logits, seeds, positions, temperatures)
    )
    logits[:, [4, 5, 17, 4001]] = 50.0
    assert draw(logits, seeds, positions, temperatures * 0).tolist() == [4] * 7, "the first of equal ones"
    logits[:4, 3000:3002] = logits[4:] = torch.nan
    assert draw(logits, seeds, positions, temperatures).tolist() == [3000] * 4 + [0] * 3, "no token past the vocabulary"
    assert torch.equal(
        draw(logits, seeds, positions, temperatures), sampler.draw(logits, seeds, positions, temperatures)
    )


def test_the_kernels_compile_for_a_hopper_gpu() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "tests.contract.hopper"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 9
    assert all("0 bytes spill stores, 0 bytes spill loads" in line for line in lines)
    for line in lines[:2]:
        assert line.startswith("_attend")
        assert line.endswith("tensor cores: True")
        assert int(line.split("; ")[1].split()[0]) <= 227 << 9, "two programs fit a multiprocessor's shared memory"


@HALVES
def test_the_norm_is_that_of_transformers(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = LlamaRMSNorm(48, 1e-5).to(dtype)
    norm.weight.data.normal_()
    states, residual = torch.randn(2, 5, 48, dtype=dtype)
    total = residual + states
    out = add_norm(states, residual, norm.weight, 1e-5)
    torch.testing.assert_close(out, norm(total))
    assert torch.equal(residual, total)
    assert torch.equal(add_norm(None, residual, norm.weight, 1e-5), out)


@HALVES
@pytest.mark.parametrize("normed", [False, True])
def test_rotation_is_that_of_transformers_and_keys_go_to_their_places(dtype: torch.dtype, normed: bool) -> None:
    torch.manual_seed(0)
    heads, key_heads, width = 4, 2, 24
    projected = torch.randn(6, (heads + 2 * key_heads) * width, dtype=dtype)
    angles = torch.randn(6, width // 2).repeat(1, 2)
    cosines, sines = angles.cos().to(dtype), angles.sin().to(dtype)
    norms = [LlamaRMSNorm(width, 1e-6).to(dtype) for _ in range(2)]
    for norm in norms:
        norm.weight.data.normal_()
    keys, values = torch.zeros(2, 3, PAGE_TOKENS, key_heads, width, dtype=dtype)
    places = torch.tensor([0, 5, 63, 64, 191, 100])
    weights = (norms[0].weight, norms[1].weight) if normed else None
    query = rotate_and_write(projected, cosines, sines, weights, 1e-6, places, keys, values)
    query_part, key_part, value_part = projected.view(6, -1, width).split([heads, key_heads, key_heads], 1)
    if normed:
        query_part, key_part = norms[0](query_part), norms[1](key_part)
    expected = apply_rotary_pos_emb(
        query_part.transpose(0, 1)[None], key_part.transpose(0, 1)[None], cosines[None], sines[None]
    )
    torch.testing.assert_close(query, expected[0][0].transpose(0, 1))
    torch.testing.assert_close(keys.flatten(0, 1)[places], expected[1][0].transpose(0, 1))
    assert torch.equal(values.flatten(0, 1)[places], value_part)
    assert int(values.flatten(0, 1).any(-1).any(-1).sum()) == 6, "nothing is written elsewhere"


@HALVES
def test_the_gate_is_that_of_transformers(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    both = torch.randn(3, 2 * 1500, dtype=dtype)
    torch.testing.assert_close(gate(both), torch.nn.functional.silu(both[:, :1500]) * both[:, 1500:])


SIZES: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 200,
    "initializer_range": 0.2,
    "eos_token_id": 1,
    "bos_token_id": 0,
}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "Llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True)),
    "Qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "Qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True)),
}
GREEDY = Sampler(SamplingParams(temperature=0.0), seed=0, prompt_length=0)
WARM = Sampler(SamplingParams(temperature=0.9), seed=11, prompt_length=0)


def model_of(family: str) -> PreTrainedModel:
    torch.manual_seed(3)
    made = MODELS[family]()
    for name, parameter in made.named_parameters():
        if "bias" in name or "norm" in name:
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    return made


def fused_engine(model: PreTrainedModel, *, strict: bool) -> TorchEngine:
    """As `load` makes it, but untried: that takes the interpreter a minute."""
    shapes = layer_shapes(model)
    FusedDecoder.merge(model)
    info = EngineInfo("tiny", "", 211, (1,), 200, 2, strict=strict, strict_report="")
    pages = PagePool(shapes, 8, model.dtype, CPU)
    return TorchEngine(model, info, pages, strict=strict, parts=fused_parts(layers=True))


def said(engine: TorchEngine) -> list[tuple[int, ...]]:
    """Of two sequences, together and with guesses."""
    opened = [engine.open() for _ in range(2)]
    texts = [[(7 * i + s) % 211 for i in range(n)] for s, n in ((1, 9), (5, 3))]
    words = []
    for turn in range(3):
        blocks = [
            Block(sequence, text[engine.length(sequence) :] + [turn] * turn, 1 + turn, one)
            for sequence, text, one in zip(opened, texts, (GREEDY, WARM), strict=True)
        ]
        for sequence, text, choices in zip(opened, texts, engine.step(blocks), strict=True):
            engine.truncate(sequence, len(text))
            text.append(choices.tokens[0])
            words.append(tuple(choices.tokens))
    return words


@pytest.mark.parametrize("family", list(MODELS))
def test_a_model_says_the_same_in_few_kernels(family: str) -> None:
    simple = wrap(model_of(family), name="simple", strict=False, max_sequences=2, kv_cache_gib=0.01)
    assert said(fused_engine(model_of(family), strict=False)) == said(simple)


@pytest.mark.usefixtures("steady_products")
def test_in_strict_mode_shapes_change_and_bits_do_not() -> None:
    engine = fused_engine(model_of("Llama"), strict=True)
    one, other = engine.open(), engine.open()
    engine.logits([Block(one, list(range(62)), 0, GREEDY)])
    blocks = [Block(one, [5, 6, 7], 3, GREEDY), Block(other, list(range(9)), 9, GREEDY)]
    together = engine.logits(blocks)
    engine.truncate(one, 62)
    engine.truncate(other, 0)
    alone = [engine.logits([block])[0] for block in blocks]
    engine.truncate(one, 62)
    singly = torch.cat([engine.logits([Block(one, [token], 1, GREEDY)])[0] for token in (5, 6, 7)])
    assert torch.equal(together[0], alone[0])
    assert torch.equal(together[1], alone[1])
    assert torch.equal(together[0], singly)
    assert engine.fast is not None
    assert engine.fast.split_pages == 8
    assert len({(shape.rows, shape.sequences) for shape in engine.fast.steps.shapes}) > 2


def test_what_cannot_run_fused_is_said() -> None:
    assert why_not(model_of("Llama")) is None
    assert "gelu" in str(why_not(LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="gelu"))))
    odd = model_of("Llama")
    odd.model.layers[1].mlp.down_proj = torch.nn.Bilinear(1, 1, 1)
    odd.model.layers[1].mlp.up_proj = type("QuantLinear", (torch.nn.Linear,), {})(2, 2)
    assert "not plain" in str(why_not(odd))
