"""The exporters of the demo pair: what they write says and reads what its source does, and odd models are refused."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from llama_cpp import llama_cpp
from transformers import AutoTokenizer

from edge_client.cli import main
from edge_client.drafters import load_drafter
from edge_client.export.agreement import sequences
from edge_client.export.exporting import check, export, size_bytes
from edge_client.export.gguf_file import export_gguf
from models.demo.data import render
from models.demo.dialogues import DIALOGUES

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("kind", "quantize", "least_argmax", "least_overlap"),
    [
        ("onnx", "fp32", 1.0, 0.9999),
        ("onnx", "int8", 0.9, 0.97),
        ("onnx", "int4", 0.5, 0.8),
        ("gguf", "f32", 0.99, 0.999),
        ("gguf", "f16", 0.97, 0.998),
        ("gguf", "q8_0", 0.9, 0.97),
        ("gguf", "q4_0", 0.5, 0.8),
    ],
)
def test_an_export_agrees_with_its_source(
    source: Path, tmp_path: Path, kind: str, quantize: str, least_argmax: float, least_overlap: float
) -> None:
    path = export(kind, source, tmp_path / "drafter", quantize)
    found = check(source, path, sequences(source, map(render, DIALOGUES)))
    assert found.tokens > 200
    assert found.argmax >= least_argmax
    assert found.overlap >= least_overlap


def test_eight_bits_hold_the_tied_matrix_once(source: Path, tmp_path: Path) -> None:
    export("onnx", source, tmp_path / "onnx", "int8")
    weights = sum(tensor.numel() for tensor in _parameters(source))
    # One byte a weight, a float32 scale per block of 32, and the rotary tables.
    assert (tmp_path / "onnx" / "model.onnx").stat().st_size < weights * 1.125 + 110_000
    assert not list((tmp_path / "onnx").glob("*.data"))


def _parameters(source: Path) -> list[Any]:
    from safetensors.torch import load_file

    return list(load_file(source / "model.safetensors").values())


def test_exporting_again_replaces_the_model(source: Path, tmp_path: Path) -> None:
    export("onnx", source, tmp_path, "fp32")
    large = size_bytes(tmp_path)
    export("onnx", source, tmp_path, "int8")
    assert size_bytes(tmp_path) < large


def test_llama_cpp_reads_text_as_transformers_does(source: Path, made: Callable[[str], Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = llama_cpp.llama_model_load_from_file(str(made("gguf-f32")).encode(), llama_cpp.llama_model_default_params())
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    for text in [render(messages) for messages in DIALOGUES] + ["  It's 12:30,\n\nÜber naïve  😀 don't!  "]:
        encoded = text.encode()
        room = (llama_cpp.llama_token * 2048)()
        count = llama_cpp.llama_tokenize(vocabulary, encoded, len(encoded), room, len(room), False, True)
        assert room[:count] == tokenizer.encode(text, add_special_tokens=False)
    assert llama_cpp.llama_vocab_bos(vocabulary) == tokenizer.bos_token_id
    assert llama_cpp.llama_vocab_is_eog(vocabulary, tokenizer.eos_token_id)
    template = llama_cpp.llama_model_chat_template(model, None)
    assert ctypes.string_at(template).decode() == tokenizer.chat_template
    llama_cpp.llama_model_free(model)


@pytest.mark.parametrize(
    ("file", "change", "complaint"),
    [
        ("config.json", {"mlp_bias": True}, "with a bias is not exported"),
        ("config.json", {"attention_bias": True}, "lacks weights that its config.json promises"),
        ("config.json", {"model_type": "olmo"}, "'olmo' are not exported to GGUF; known are llama"),
        (
            "config.json",
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}},
            "type 'yarn' are not exported",
        ),
        ("tokenizer.json", {"pre_tokenizer": {"type": "Whitespace"}}, "expected a byte-level BPE"),
    ],
)
def test_what_gguf_cannot_say_is_refused(
    source: Path, tmp_path: Path, file: str, change: dict[str, Any], complaint: str
) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "odd"))
    content = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps(content | change), encoding="utf-8")
    with pytest.raises(ValueError, match=complaint):
        export_gguf(folder, tmp_path / "odd.gguf")


@pytest.mark.parametrize(("kind", "quantize"), [("onnx", "none"), ("gguf", "q4_0")])
def test_the_command_exports_and_says_how_well(source: Path, tmp_path: Path, kind: str, quantize: str) -> None:
    arguments = ["export", "--model", str(source), "--format", kind, "--quantize", quantize, "--output", str(tmp_path)]
    done = CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout[done.stdout.index("{") :])
    assert report["path"] == str(tmp_path if kind == "onnx" else tmp_path / "source-Q4_0.gguf")
    assert report["agreement"]["tokens"] > 100
    assert load_drafter(report["path"]) is not None


@pytest.mark.parametrize(
    ("kind", "quantize", "complaint"),
    [
        ("onnx", "q4_k_m", "unknown quantization 'q4_k_m' for ONNX; known are fp32"),
        ("gguf", "int4", "known are f32, f16"),
    ],
)
def test_the_command_refuses_in_a_sentence(
    source: Path, tmp_path: Path, kind: str, quantize: str, complaint: str
) -> None:
    arguments = ["export", "--model", str(source), "--format", kind, "--quantize", quantize, "--output", str(tmp_path)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert complaint in done.output


def test_drafting_needs_nothing_of_exporting() -> None:
    code = (
        "import sys\n"
        "from edge_client.drafters import load_drafter\n"
        "for name in sys.argv[1:]: load_drafter(name).feed([1, 2])\n"
        "print(*{'torch', 'transformers', 'onnx', 'gguf', 'huggingface_hub', 'models'} & set(sys.modules))"
    )
    drafters = [str(REPOSITORY / "models" / "demo" / name) for name in ("drafter-onnx", "drafter.gguf")]
    done = subprocess.run(
        [sys.executable, "-c", code, *drafters], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
