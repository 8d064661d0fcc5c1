"""Products on packed weights: of the very weights, for any number of rows, and undone without a trace."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import nn

from cloud_verifier.engines.base import Block
from cloud_verifier.engines.torch_engine import product_choice, products
from cloud_verifier.engines.torch_engine.cpu_decoder import CpuDecoder, joined
from cloud_verifier.engines.torch_engine.layout import Layout
from cloud_verifier.engines.torch_engine.load import wrap
from cloud_verifier.engines.torch_engine.packing import Packing
from cloud_verifier.engines.torch_engine.product_choice import choose
from cloud_verifier.engines.torch_engine.products import (
    KINDS,
    HalfProduct,
    PackedLinear,
    PlainProduct,
    Product,
    Unpackable,
    linears,
    made,
)
from tests.contract.test_engine import GREEDY, all_logits, build, ids, own_logits

PACKED = [kind for kind in KINDS if kind != "plain"]
HALVES = pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="needs FBGEMM")


def weight_of(*size: int) -> torch.Tensor:
    """As from a checkpoint in bfloat16, with weights that float16 by itself has not."""
    torch.manual_seed(2)
    weight = torch.randn(*size).bfloat16().float()
    weight[0, :3] = torch.tensor([2.0**-24, -(2.0**-20) * 1.9921875, 0.0])
    weight[1] *= 2.0**20
    return weight


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_bias", [False, True], ids=["bare", "bias"])
def test_no_weight_is_rounded_and_the_product_is_one_of_float32(kind: str, with_bias: bool) -> None:
    weight = weight_of(96, 80)
    bias = torch.randn(96) if with_bias else None
    product = made(kind, [weight], [bias])
    assert torch.equal(product.weight, weight)
    x = torch.randn(33, 80)
    expected = nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    size = (x.double().abs() @ weight.double().abs().T).clamp(min=1)
    assert float(((product(x) - expected).abs() / size).max()) < 1e-6


@HALVES
def test_weights_that_float16_cannot_hold_are_kept_in_another_way() -> None:
    weight = weight_of(8, 16)
    HalfProduct(weight, None)
    weight[3, 3] += 2.0**-20  # more digits than float16 has
    with pytest.raises(Unpackable, match="need more"):
        HalfProduct(weight, None)
    product = made("half", [weight], [None])
    assert not isinstance(product, HalfProduct)
    assert torch.equal(product.weight, weight)


@HALVES
@pytest.mark.parametrize("with_bias", [False, True], ids=["bare", "bias"])
def test_a_large_weight_in_pieces_gives_the_bits_of_one_piece(monkeypatch: pytest.MonkeyPatch, with_bias: bool) -> None:
    weight, bias = weight_of(200, 80), torch.randn(200) if with_bias else None
    whole = HalfProduct(weight, bias)
    monkeypatch.setattr(products, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(products, "PIECE_BYTES", 2 * 80 * 70)
    pieces = HalfProduct(weight, bias)
    assert len(pieces._pieces) > 2
    for rows in (1, 3, 16, 33):
        x = torch.randn(rows, 80)
        assert torch.equal(pieces(x), whole(x))
    assert torch.equal(pieces.weight, weight)


@HALVES
@pytest.mark.parametrize("with_bias", [False, True], ids=["bare", "bias"])
@pytest.mark.parametrize("large", [False, True], ids=["whole", "pieces"])
def test_both_ways_to_call_fbgemm_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, with_bias: bool, large: bool
) -> None:
    if large:
        monkeypatch.setattr(products, "WHOLE_BYTES", 1000)
        monkeypatch.setattr(products, "PIECE_BYTES", 2 * 80 * 40)
    weight, bias = weight_of(96, 80), torch.randn(96) if with_bias else None
    lone, several = (products.half_library(threads) for threads in (1, 2))
    made = []
    for library in (lone, several):
        monkeypatch.setattr(products, "half_library", lambda _, library=library: library)
        made.append(HalfProduct(weight, bias))
        assert torch.equal(made[-1].weight, weight)
    for rows in (1, 5, 16):
        x = torch.randn(rows, 80)
        assert torch.equal(made[0](x), made[1](x))


@HALVES
def test_where_torch_has_dropped_one_way_the_other_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "fbgemm_pack_gemm_matrix_fp16", raising=False)
    assert products.half_library.__wrapped__(1) == products.half_library(2)


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "gpt2"])
def test_packing_is_undone_without_a_trace(kind: str, family: str) -> None:
    model = build(family, tie_word_embeddings=True)
    before, names = {name: one.clone() for name, one in model.state_dict().items()}, dict(model.named_modules())
    expected = own_logits(model, ids(9))
    packing = Packing(model, kind, joined(model) if family in ("llama", "qwen3") else ())
    assert not linears(model) or family in ("llama", "qwen3")
    assert sum(one.numel() for _, _, linear in linears(model) for one in [linear.weight]) == 0
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    assert torch.equal(embedding.weight, before["lm_head.weight"]), "an embedding is read by rows"
    packing.undo()
    assert {name: type(one) for name, one in model.named_modules()} == {name: type(one) for name, one in names.items()}
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert model.lm_head.weight is embedding.weight
    assert torch.equal(own_logits(model, ids(9)), expected)


def test_a_packed_layer_still_says_its_weight() -> None:
    linear = nn.Linear(16, 8)
    model, weight, x = nn.Sequential(linear), linear.weight.detach().clone(), torch.randn(3, 2, 16)
    expected = linear(x)
    Packing(model, "onednn")
    packed = model[0]
    assert isinstance(packed, PackedLinear)
    assert torch.equal(packed.weight, weight)
    torch.testing.assert_close(packed(x), expected)


class _Slow(Product):
    """As plain, after a delay that no machine has by itself."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._plain = PlainProduct(weight, bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(200):
            out = self._plain(x)
        return out

    @property
    def weight(self) -> torch.Tensor:
        return self._plain.weight


def test_the_faster_products_are_chosen_and_rows_that_differ_are_avoided(monkeypatch: pytest.MonkeyPatch) -> None:
    class LoneRowsDiffer(_Slow):
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return self._plain(x.double().float()) + (1.0 if len(x) % 4 else 0.0)

    def refusing(weight: torch.Tensor, bias: torch.Tensor | None) -> Product:
        raise NotImplementedError("no such operator")

    model = build("llama", hidden_size=256, intermediate_size=704)
    monkeypatch.setattr(product_choice, "KINDS", {"half": refusing, "onednn": _Slow, "plain": PlainProduct})
    choice = choose(model, strict=True)
    assert choice is not None
    assert choice.kind == "plain"
    monkeypatch.setattr(product_choice, "KINDS", {"onednn": LoneRowsDiffer})
    choice = choose(model, strict=True)
    assert choice is not None
    assert choice.rule.multiple % 4 == 0
    choice = choose(model, strict=False)
    assert choice is not None
    assert choice.rule.multiple == 1


def test_a_model_without_plain_layers_has_no_choice() -> None:
    assert choose(nn.Sequential(nn.Conv1d(3, 3, 3)), strict=True) is None
    assert choose(nn.Linear(4, 4).half(), strict=True) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma"])
def test_what_computes_is_in_the_fingerprint_and_changes_only_rounding(family: str, dtype: torch.dtype) -> None:
    engines = {kind: wrap(build(family, dtype), name=family, max_sequences=2, products=kind) for kind in KINDS}
    logits = {kind: all_logits(engine, engine.open(), ids(70)).float() for kind, engine in engines.items()}
    expected = own_logits(build(family, dtype).float(), ids(70))
    tolerance = float(expected.abs().max()) * (2e-4 if dtype == torch.float32 else 0.1)
    for kind, engine in engines.items():
        assert engine.info.strict, engine.info.strict_report
        torch.testing.assert_close(logits[kind], expected, atol=tolerance, rtol=0)
    assert len({engine.info.fingerprint for engine in engines.values()}) == len(engines)


def test_layers_that_compute_something_else_run_as_transformers_has_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(CpuDecoder):
        def __call__(self, ids: torch.Tensor, layout: Layout, keep: torch.Tensor) -> torch.Tensor:
            return super().__call__(ids, layout, keep) * 1.1

    monkeypatch.setattr(import_module("cloud_verifier.engines.torch_engine.load"), "CpuDecoder", Wrong)
    engine = wrap(build("llama"), name="tiny", max_sequences=2)
    assert "Steps do not run with fused layers" in caplog.text
    expected = own_logits(build("llama"), ids(20))
    sequence = engine.open()
    got = engine.logits([Block(sequence, ids(20), 20, GREEDY)])[0]
    torch.testing.assert_close(got, expected, atol=2e-4 * float(expected.abs().max()), rtol=0)
