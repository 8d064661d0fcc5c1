"""What cannot be drafted with says so, in a sentence that names the cause."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from edge_client.drafters import load_drafter
from edge_client.drafters.base import DrafterError
from edge_client.drafters.llama_cpp.drafter import LlamaCppDrafter
from edge_client.drafters.llama_cpp.rollback import PositionRollback
from edge_client.drafters.onnx.drafter import OnnxDrafter
from edge_client.drafters.settings import DeviceSettings
from tests.contract.tiny_models import CONTEXT_TOKENS, save_recurrent_gguf

Made = Callable[[str], Path]
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(made: Made, tmp_path: Path) -> Path:
    """A private copy of a good ONNX folder."""
    return Path(shutil.copytree(made("onnx-fp32"), tmp_path / "drafter"))


# --- by name ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [None, "none"])
def test_none_means_no_drafter(spec: str | None) -> None:
    assert load_drafter(spec) is None


@pytest.mark.parametrize(("name", "kind"), [("onnx-fp32", OnnxDrafter), ("gguf-f32", LlamaCppDrafter)])
@pytest.mark.parametrize("as_type", [str, Path])
def test_a_path_loads_what_is_there(made: Made, name: str, kind: type, as_type: type) -> None:
    drafter = load_drafter(as_type(made(name)))
    assert drafter is not None
    assert isinstance(drafter, kind)
    drafter.feed([1, 2, 3])
    assert drafter.length == 3
    drafter.close()


def test_anything_else_is_told_what_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(DrafterError, match=r"does not exist.*\.gguf file.*\.onnx"):
        load_drafter("no-such-thing")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(DrafterError, match=r"is not one of these.*\.gguf file"):
        load_drafter(tmp_path / "model.safetensors")


@pytest.mark.parametrize(("name", "kind"), [("onnx-fp32", OnnxDrafter), ("gguf-f32", LlamaCppDrafter)])
def test_a_model_of_the_hub_loads_from_its_cache(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: type
) -> None:
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    if kind is OnnxDrafter:
        shutil.copytree(made(name), snapshot / "onnx")
        (snapshot / "onnx" / "tokenizer.json").rename(snapshot / "tokenizer.json")
    else:
        shutil.copyfile(made(name), snapshot / "tiny-Q8_0.gguf")
    (tmp_path / "models--org--tiny" / "refs").mkdir()
    (tmp_path / "models--org--tiny" / "refs" / "main").write_text("c0ffee")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    drafter = load_drafter("hf:org/tiny", settings=DeviceSettings(offline=True))
    assert drafter is not None
    assert isinstance(drafter, kind)
    assert drafter.info.name == f"org/tiny/{'model.onnx' if kind is OnnxDrafter else 'tiny-Q8_0.gguf'}"
    drafter.feed([1, 2, 3])
    drafter.close()


def test_without_huggingface_hub_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DrafterError, match="pip install huggingface_hub"):
        load_drafter("hf:org/tiny")


def test_naming_drafters_imports_no_runtime() -> None:
    code = (
        "import sys, edge_client.drafters, edge_client.drafters.onnx.drafter, edge_client.drafters.llama_cpp.drafter\n"
        "print(*{'onnxruntime', 'llama_cpp', 'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# --- ONNX folders -----------------------------------------------------------------------------------------------


def test_onnx_without_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DrafterError, match="there is no folder"):
        OnnxDrafter(tmp_path / "nowhere")


def test_onnx_without_a_model(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    with pytest.raises(DrafterError, match=r"has no \.gguf and no \.onnx file"):
        OnnxDrafter(folder)


def test_onnx_prefers_model_onnx_among_several(folder: Path) -> None:
    (folder / "model_q4.onnx").write_bytes(b"not read")
    drafter = OnnxDrafter(folder)
    assert drafter.info.name == "drafter"
    drafter.close()


def test_onnx_with_several_models_and_no_favourite(folder: Path) -> None:
    (folder / "model.onnx").rename(folder / "a.onnx")
    shutil.copyfile(folder / "a.onnx", folder / "b.onnx")
    with pytest.raises(DrafterError, match=r"a\.onnx, b\.onnx; name one"):
        OnnxDrafter(folder)


def test_onnx_under_a_hub_folder_has_its_file_in_the_name(folder: Path) -> None:
    (folder / "onnx").mkdir()
    (folder / "model.onnx").rename(folder / "onnx" / "model_fp32.onnx")
    drafter = OnnxDrafter(folder)
    assert drafter.info.name == "drafter/model_fp32.onnx"
    drafter.close()


def test_onnx_without_a_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DrafterError, match=r"has no tokenizer\.json"):
        OnnxDrafter(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {}}'])
def test_onnx_with_a_broken_tokenizer(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(DrafterError, match=r"tokenizer\.json"):
        OnnxDrafter(folder)


@pytest.mark.parametrize("content", [b"garbage", b""])
def test_onnx_that_cannot_be_parsed(folder: Path, content: bytes) -> None:
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(DrafterError, match=r"ONNX Runtime cannot load .*model\.onnx"):
        OnnxDrafter(folder)


def test_onnx_that_is_no_language_model_with_a_cache(folder: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["pixels"], ["classes"])],
        "classifier",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("classes", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(DrafterError) as raised:
        OnnxDrafter(folder)
    for part in ("no input input_ids", "past_key_values.N.key", "output logits", "unknown input pixels"):
        assert part in str(raised.value)


def test_onnx_whose_sizes_stand_nowhere(folder: Path) -> None:
    (folder / "genai_config.json").unlink()
    with pytest.raises(DrafterError, match=r"leaves head_size open; put .*config\.json"):
        OnnxDrafter(folder)


def test_onnx_reads_the_sizes_from_a_transformers_config_too(folder: Path, source: Path) -> None:
    (folder / "genai_config.json").unlink()
    shutil.copyfile(source / "config.json", folder / "config.json")
    drafter = OnnxDrafter(folder)
    assert drafter.info.context_tokens == CONTEXT_TOKENS
    drafter.feed([1, 2, 3])
    drafter.close()


def test_a_runtime_failure_in_the_middle_of_a_feed_leaves_the_sequence(folder: Path) -> None:
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["context_length"] = 2 * CONTEXT_TOKENS  # more than the graph has rotary embeddings for
    (folder / "genai_config.json").write_text(json.dumps(config))
    drafter, sound = OnnxDrafter(folder), OnnxDrafter(folder)
    for each in (drafter, sound):
        each.feed([1, 2, 3])
    with pytest.raises(DrafterError, match=f"failed on {CONTEXT_TOKENS} tokens at position 3"):
        drafter.feed([4] * CONTEXT_TOKENS)
    assert drafter.length == 3
    for each in (drafter, sound):
        each.feed([5])
    assert drafter.candidates().log_probs.tolist() == sound.candidates().log_probs.tolist()
    drafter.close()
    sound.close()


# --- GGUF files -------------------------------------------------------------------------------------------------


def test_gguf_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DrafterError, match="cannot open"):
        LlamaCppDrafter(tmp_path / "nothing.gguf")


def test_gguf_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<html>404</html>")
    with pytest.raises(DrafterError, match=r"is not a GGUF file: it begins with b'<htm'"):
        LlamaCppDrafter(tmp_path / "page.gguf")


def test_gguf_that_was_cut_off(made: Made, tmp_path: Path) -> None:
    whole = made("gguf-f32").read_bytes()
    (tmp_path / "half.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DrafterError, match=r"llama\.cpp cannot load .*half\.gguf: .*(corrupted|incomplete|bounds)"):
        LlamaCppDrafter(tmp_path / "half.gguf")


def test_gguf_that_cannot_go_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_recurrent_gguf(tmp_path / "mamba.gguf")
    monkeypatch.setattr(
        "edge_client.drafters.llama_cpp.drafter.StateRollback", PositionRollback
    )  # a state is no row of positions
    with pytest.raises(DrafterError, match=r"cannot drop its last tokens \(llama\.cpp refused to roll back"):
        LlamaCppDrafter(tmp_path / "mamba.gguf")
    monkeypatch.setattr(PositionRollback, "drop", lambda _self, _length: None)
    with pytest.raises(DrafterError, match=r"cannot drop its last tokens \(.*llama_decode gave"):
        LlamaCppDrafter(tmp_path / "mamba.gguf")


def test_gguf_without_llama_cpp_says_what_to_install(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(DrafterError, match="pip install llama-cpp-python"):
        LlamaCppDrafter(made("gguf-f32"))


def test_onnx_without_onnxruntime_says_what_to_install(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DrafterError, match="pip install onnxruntime"):
        OnnxDrafter(made("onnx-fp32"))


def test_llama_cpp_keeps_quiet_unless_asked(made: Made, capfd: pytest.CaptureFixture[str]) -> None:
    LlamaCppDrafter(made("gguf-f32")).close()
    assert capfd.readouterr() == ("", "")
    LlamaCppDrafter(made("gguf-f32"), verbose=True).close()
    assert "llama" in capfd.readouterr().err
