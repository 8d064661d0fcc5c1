"""Published graphs differ in what they ask for; all of these are one model, and say what transformers says."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edge_client.drafters.base import DrafterError
from edge_client.drafters.onnx import providers
from edge_client.drafters.onnx.drafter import OnnxDrafter, open_onnx
from edge_client.drafters.onnx.providers import Provider, open_session, parse_provider
from edge_client.drafters.settings import DeviceSettings
from tests.contract.tiny_models import CONTEXT_TOKENS

Made = Callable[[str], Path]
Surgery = Callable[[onnx.GraphProto], None]


def int32(graph: onnx.GraphProto) -> None:
    for name in ("input_ids", "attention_mask", "position_ids"):
        _cast_input(graph, name, TensorProto.INT32, TensorProto.INT64)


def half_precision_cache(graph: onnx.GraphProto) -> None:
    for node in [*graph.input]:
        if node.name.startswith("past"):
            _cast_input(graph, node.name, TensorProto.FLOAT16, TensorProto.FLOAT)
    for node in [*graph.output]:
        if node.name.startswith(("present", "logits")):
            _cast_output(graph, node.name, TensorProto.FLOAT16)


def without_positions(graph: onnx.GraphProto) -> None:
    """Positions are those that the mask leaves: its length minus the new tokens, and on."""
    axis = _constant(graph, "axis", np.array([0]))
    _prepend(
        graph,
        helper.make_node("Shape", ["attention_mask"], ["total"], start=1),
        helper.make_node("Shape", ["input_ids"], ["new"], start=1),
        helper.make_node("Sub", ["total", "new"], ["before"]),
        helper.make_node("Squeeze", ["total", axis], ["last"]),
        helper.make_node("Squeeze", ["before", axis], ["first"]),
        helper.make_node("Range", ["first", "last", _constant(graph, "one", np.array(1))], ["positions"]),
        helper.make_node("Unsqueeze", ["positions", axis], ["position_ids"]),
    )
    graph.input.remove(next(node for node in graph.input if node.name == "position_ids"))


def few_logits(graph: onnx.GraphProto) -> None:
    """The last `num_logits_to_keep` rows only."""
    graph.input.append(helper.make_tensor_value_info("num_logits_to_keep", TensorProto.INT64, []))
    _rename_made(graph, "logits", "all_logits")
    flat, end, rows = (_constant(graph, f"number{n}", np.array([n])) for n in (-1, 1 << 40, 1))
    graph.node.extend(
        [
            helper.make_node("Neg", ["num_logits_to_keep"], ["minus_kept"]),
            helper.make_node("Reshape", ["minus_kept", flat], ["from"]),
            helper.make_node("Slice", ["all_logits", "from", end, rows], ["logits"]),
        ]
    )


def merged(graph: onnx.GraphProto) -> None:
    """A `use_cache_branch` that must be true exactly when there is a past: the wrong one gives nonsense."""
    graph.input.append(helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1]))
    past = next(node.name for node in graph.input if node.name.startswith("past"))
    _rename_made(graph, "logits", "right_logits")
    zero, nonsense = _constant(graph, "zero", np.array([0])), _constant(graph, "nan", np.array(np.nan, np.float32))
    graph.node.extend(
        [
            helper.make_node("Shape", [past], ["past_length"], start=2, end=3),
            helper.make_node("Greater", ["past_length", zero], ["has_past"]),
            helper.make_node("Equal", ["has_past", "use_cache_branch"], ["consistent"]),
            helper.make_node("Where", ["consistent", "right_logits", nonsense], ["logits"]),
        ]
    )


def lengths(graph: onnx.GraphProto) -> None:
    """Lengths as numbers: the wrong ones give nonsense."""
    for name in ("past_sequence_length", "total_sequence_length"):
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT32, [1, 1] if "past" in name else []))
    _rename_made(graph, "logits", "right_logits")
    flat, nonsense = _constant(graph, "minus", np.array([-1])), _constant(graph, "nan", np.array(np.nan, np.float32))
    graph.node.extend(
        [
            helper.make_node("Sub", ["total_sequence_length", "past_sequence_length"], ["told_new"]),
            helper.make_node("Cast", ["told_new"], ["told"], to=TensorProto.INT64),
            helper.make_node("Reshape", ["told", flat], ["told_flat"]),
            helper.make_node("Shape", ["input_ids"], ["really_new"], start=1),
            helper.make_node("Equal", ["told_flat", "really_new"], ["consistent"]),
            helper.make_node("Where", ["consistent", "right_logits", nonsense], ["logits"]),
        ]
    )


def other_names(graph: onnx.GraphProto) -> None:
    """As a genai_config.json may name them."""
    for node in [*graph.input, *graph.output]:
        new = _other_name(node.name)
        for part in graph.node:
            part.input[:] = [new if name == node.name else name for name in part.input]
            part.output[:] = [new if name == node.name else name for name in part.output]
        node.name = new


def _other_name(name: str) -> str:
    parts = name.split(".")
    return f"{parts[2]}_cache_{parts[0][:4]}_{parts[1]}" if len(parts) == 3 else f"my_{name}"


GENAI = {
    "model": {
        "context_length": CONTEXT_TOKENS,
        "decoder": {
            "inputs": {
                **{name: f"my_{name}" for name in ("input_ids", "attention_mask", "position_ids")},
                "past_key_names": "key_cache_past_%d",
                "past_value_names": "value_cache_past_%d",
            },
            "outputs": {
                "logits": "my_logits",
                "present_key_names": "key_cache_pres_%d",
                "present_value_names": "value_cache_pres_%d",
            },
        },
    }
}
CONVENTIONS: dict[str, list[Surgery]] = {
    "as torch writes it": [],
    "int32": [int32],
    "half precision cache and logits": [half_precision_cache],
    "no position ids": [without_positions],
    "num_logits_to_keep": [few_logits],
    "merged": [merged],
    "lengths": [lengths],
    "other names": [other_names],
    "several at once": [int32, without_positions, few_logits, merged, half_precision_cache],
}


def _cast_input(graph: onnx.GraphProto, name: str, outside: int, inside: int) -> None:
    for node in graph.node:
        node.input[:] = [f"{name}.cast" if used == name else used for used in node.input]
    _prepend(graph, helper.make_node("Cast", [name], [f"{name}.cast"], to=inside))
    next(node for node in graph.input if node.name == name).type.tensor_type.elem_type = outside


def _cast_output(graph: onnx.GraphProto, name: str, outside: int) -> None:
    _rename_made(graph, name, f"{name}.whole")
    graph.node.append(helper.make_node("Cast", [f"{name}.whole"], [name], to=outside))
    next(node for node in graph.output if node.name == name).type.tensor_type.elem_type = outside


def _rename_made(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.output[:] = [new if name == old else name for name in node.output]
        node.input[:] = [new if name == old else name for name in node.input]


def _prepend(graph: onnx.GraphProto, *nodes: onnx.NodeProto) -> None:
    for node in reversed(nodes):
        graph.node.insert(0, node)


def _constant(graph: onnx.GraphProto, name: str, value: np.ndarray) -> str:
    graph.initializer.append(numpy_helper.from_array(value, f"surgery.{name}"))
    return f"surgery.{name}"


@pytest.fixture(params=CONVENTIONS)
def convention(request: pytest.FixtureRequest, made: Made, tmp_path: Path) -> tuple[str, Path]:
    """A folder with the tiny model's graph as this convention would have it."""
    folder = Path(shutil.copytree(made("onnx-growing"), tmp_path / "model"))
    model = onnx.load(folder / "model.onnx")
    for operate in CONVENTIONS[request.param]:
        operate(model.graph)
    onnx.save(model, folder / "model.onnx")
    if request.param == "other names":
        (folder / "genai_config.json").write_text(json.dumps(GENAI))
    return request.param, folder


def test_every_convention_is_the_same_model(convention: tuple[str, Path], reference: torch.nn.Module) -> None:
    name, folder = convention
    tolerance = 3e-2 if "half" in name or "several" in name else 1e-4
    tokens = [int(token) for token in np.random.default_rng(8).integers(0, 250, 40)]
    with torch.inference_mode():
        rows = reference(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1).numpy()
    drafter = OnnxDrafter(folder)

    def assert_like(position: int) -> None:
        found = drafter.candidates()
        np.testing.assert_allclose(found.log_probs, rows[position][found.ids], atol=tolerance, rtol=0)

    drafter.feed(tokens[:20])
    assert_like(19)
    drafter.feed(tokens[25:30])
    drafter.rollback(20)
    for position in range(20, 30):
        drafter.feed([tokens[position]])
        assert_like(position)
    drafter.feed(tokens[30:])
    assert_like(39)
    drafter.rollback(0)
    drafter.feed(tokens[:1])
    assert_like(0)
    drafter.close()


def test_a_model_with_its_weights_beside_it(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made("onnx-growing"), tmp_path / "hub"))
    (folder / "onnx").mkdir()
    model = onnx.load(folder / "model.onnx")
    (folder / "model.onnx").unlink()
    onnx.save(model, folder / "onnx" / "model.onnx", save_as_external_data=True, location="model.onnx_data")
    drafter = OnnxDrafter(folder)
    assert drafter.info.name == "hub"
    drafter.feed([1, 2, 3])
    drafter.close()
    (folder / "onnx" / "model.onnx_data").unlink()
    with pytest.raises(DrafterError, match=r"cannot load .*model\.onnx.*model\.onnx_data"):
        OnnxDrafter(folder)


def refused(made: Made, tmp_path: Path, operate: Surgery) -> str:
    folder = Path(shutil.copytree(made("onnx-growing"), tmp_path / "model"))
    model = onnx.load(folder / "model.onnx")
    operate(model.graph)
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(DrafterError) as raised:
        OnnxDrafter(folder)
    return str(raised.value)


def test_a_recurrent_state_is_refused(made: Made, tmp_path: Path) -> None:
    def with_state(graph: onnx.GraphProto) -> None:
        graph.input.append(helper.make_tensor_value_info("past_conv.0", TensorProto.FLOAT, [1, 64, 3]))

    assert "keeps a recurrent state (past_conv.0)" in refused(made, tmp_path, with_state)


def test_a_fixed_cache_that_is_not_written_in_place_is_refused(made: Made, tmp_path: Path) -> None:
    def fixed(graph: onnx.GraphProto) -> None:
        for node in graph.input:
            if node.name.startswith("past"):
                node.type.tensor_type.shape.dim[2].dim_value = 128

    assert "a cache of a fixed 128 positions without GroupQueryAttention" in refused(made, tmp_path, fixed)


@pytest.mark.parametrize(
    "config", [{"architectures": ["BertForMaskedLM"]}, {"architectures": ["T5Model"], "is_encoder_decoder": True}]
)
def test_what_the_config_calls_no_causal_model_is_refused(
    made: Made, tmp_path: Path, config: dict[str, object]
) -> None:
    folder = Path(shutil.copytree(made("onnx-growing"), tmp_path / "model"))
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DrafterError, match="expected a causal language model"):
        OnnxDrafter(folder)


# --- providers ----------------------------------------------------------------------------------------------------


def test_providers_are_read_with_their_options() -> None:
    assert parse_provider("cuda:device_id=1, arena_extend_strategy=kNextPowerOfTwo") == Provider(
        "cuda", {"device_id": "1", "arena_extend_strategy": "kNextPowerOfTwo"}
    )
    assert parse_provider("CPUExecutionProvider") == parse_provider("cpu") == Provider("cpu")
    assert parse_provider("CoreML:ModelFormat=NeuralNetwork").options == {"ModelFormat": "NeuralNetwork"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("gpu", "no provider 'gpu'; known are auto, cpu"),
        ("cuda:x", "'x' has no value"),
        ("auto:a=b", "name the provider"),
    ],
)
def test_providers_that_cannot_be_read(text: str, complaint: str) -> None:
    with pytest.raises(DrafterError, match=complaint):
        parse_provider(text)


def test_a_provider_that_is_missing_leaves_a_notice_and_the_cpu(made: Made) -> None:
    drafter = OnnxDrafter(made("onnx-fp32"), settings=DeviceSettings(provider="qnn"))
    assert drafter.info.notices == (
        "the installed ONNX Runtime has no provider qnn (it has cpu); the drafter runs on the CPU",
    )
    drafter.feed([1, 2, 3])
    assert re.fullmatch(r"ONNX Runtime, (\d+) of \1 nodes on CPUExecutionProvider", drafter.info.runs_on)
    drafter.close()


def test_a_provider_that_takes_nothing_is_found_out(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure's is in every build, starts, and takes no node of a local model."""
    monkeypatch.setitem(providers.CLASSES, "azure", "AzureExecutionProvider")
    opened = open_session(made("onnx-fp32") / "model.onnx", 1, Provider("azure"))
    assert opened.notices == ("the provider azure took no node of the model; all of it runs on the CPU",)
    assert set(opened.nodes) == {"CPUExecutionProvider"}


def test_a_provider_that_fails_leaves_a_notice_and_the_cpu(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(providers.CLASSES, "azure", "AzureExecutionProvider")
    real = providers._session

    def failing(runtime: object, file: Path, threads: int, provider: Provider) -> object:
        if provider.name == "azure":
            raise RuntimeError("no such device")
        return real(runtime, file, threads, provider)

    monkeypatch.setattr(providers, "_session", failing)
    opened = open_session(made("onnx-fp32") / "model.onnx", 1, Provider("azure"))
    assert opened.notices == ("the provider azure cannot load the model (no such device); the drafter runs on the CPU",)
    assert opened.provider == "cpu"


def test_auto_measures_and_keeps_the_fastest(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    speeds = {"cpu": 3.0, "coreml": 2.0, "xnnpack": 5.0}

    def measured(drafter: OnnxDrafter) -> float:
        tried.append(drafter)
        return speeds[list(speeds)[len(tried) - 1]]

    monkeypatch.setattr("edge_client.drafters.onnx.drafter.available_providers", lambda: ["cpu", "xnnpack", "coreml"])
    monkeypatch.setattr("edge_client.drafters.onnx.drafter._ms_per_token", measured)
    drafter = open_onnx(made("onnx-fp32"), threads=1, settings=DeviceSettings(provider="auto"))
    assert len(tried) == 3
    assert drafter is tried[1]
    assert len(drafter.info.notices) == 2  # neither is in this build, and both say so
    drafter.feed([1])
    for other in (tried[0], tried[2]):
        with pytest.raises(DrafterError, match="closed"):
            other.feed([1])
    drafter.close()


def test_auto_on_a_plain_build_is_the_cpu(made: Made) -> None:
    drafter = open_onnx(made("onnx-int8"), threads=1, settings=DeviceSettings(provider="auto"))
    assert drafter.info.notices == ()
    assert drafter.length == 0
    drafter.close()


def test_a_cache_in_the_accelerators_memory_is_the_same_cache(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path that a GPU takes, with the CPU's memory in its place."""
    plain = OnnxDrafter(made("onnx-fp32"))
    monkeypatch.setattr("edge_client.drafters.onnx.drafter._PLACES", {"cpu": "cpu"})
    placed = OnnxDrafter(made("onnx-fp32"))
    for drafter in (plain, placed):
        drafter.feed(list(range(30)))
        drafter.rollback(12)
        drafter.feed([5, 6])
    assert plain.candidates().log_probs.tolist() == placed.candidates().log_probs.tolist()
    placed.close()
    plain.close()
