"""Which file of a repository is drafted with."""

from __future__ import annotations

import pytest

from edge_client.drafters.base import DrafterError
from outrider_models import file_choice
from outrider_models.file_choice import choose, companions, quantization

GGUF = [f"SmolLM2-135M-Instruct-{quant}.gguf" for quant in ("Q4_K_M", "Q8_0", "IQ3_XS", "f16")]
ONNX = [f"onnx/model{suffix}.onnx" for suffix in ("", "_bnb4", "_fp16", "_int8", "_q4", "_q4f16", "_quantized")]
BESIDE = [
    "config.json",
    "tokenizer.json",
    "chat_template.jinja",
    "generation_config.json",
    "README.md",
    "onnx/model.onnx_data",
    "onnx/model_fp16.onnx_data",
]
GENAI = [
    f"{folder}/{name}"
    for folder in ("cpu_and_mobile/cpu-int4-rtn-block-32", "cuda/cuda-int4-rtn-block-32", "cuda/cuda-fp16")
    for name in ("model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json")
]
PIECES = [f"big-q8_0-0000{i}-of-00003.gguf" for i in (1, 2, 3)]


@pytest.fixture(autouse=True)
def both_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_choice, "_installed", lambda _module: True)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        *zip(GGUF, ("q4_k_m", "q8_0", "iq3_xs", "f16"), strict=True),
        *zip(ONNX, ("", "bnb4", "fp16", "int8", "q4", "q4f16", "quantized"), strict=True),
        ("cpu_and_mobile/cpu-int4-rtn-block-32/model.onnx", "int4"),
        ("qwen3-0.6b.gguf", ""),
        (PIECES[1], "q8_0"),
        ("model-UD-Q4_K_XL.gguf", "q4_k_xl"),
        ("onnx/decoder_model_merged_q4.onnx", "q4"),
    ],
)
def test_the_quantization_is_read_from_the_name(file: str, name: str) -> None:
    assert quantization(file) == name


@pytest.mark.parametrize(
    ("files", "wanted", "chosen"),
    [
        (GGUF, None, GGUF[0]),
        (GGUF[1:], None, GGUF[1]),
        (GGUF, "q8_0", GGUF[1]),
        (GGUF, "Q8-0", GGUF[1]),
        (GGUF, "F16", GGUF[3]),
        (GGUF, GGUF[2], GGUF[2]),
        (ONNX, None, "onnx/model_q4.onnx"),
        (ONNX, "q4f16", "onnx/model_q4f16.onnx"),
        (ONNX, "fp16", "onnx/model_fp16.onnx"),
        (ONNX, "model.onnx", "onnx/model.onnx"),
        (ONNX, "onnx/model_int8.onnx", "onnx/model_int8.onnx"),
        (["onnx/model.onnx"], None, "onnx/model.onnx"),
        ([*ONNX, *GGUF], None, GGUF[0]),
        (GENAI, "cuda-fp16", GENAI[8]),
        (GENAI, "cpu_and_mobile/cpu-int4-rtn-block-32", GENAI[0]),
        (PIECES, None, PIECES[0]),
        (["mmproj-model-f16.gguf", "m-Q6_K.gguf"], None, "m-Q6_K.gguf"),
        (["onnx/decoder_model_merged.onnx", "onnx/decoder_model.onnx"], None, "onnx/decoder_model_merged.onnx"),
        (["strange name.gguf"], None, "strange name.gguf"),
    ],
)
def test_the_file_that_is_meant(files: list[str], wanted: str | None, chosen: str) -> None:
    assert choose([*files, *BESIDE], wanted, "the place") == chosen


def test_what_this_device_can_run_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_choice, "_installed", lambda module: module == "onnxruntime")
    assert choose([*ONNX, *GGUF], None, "the place") == "onnx/model_q4.onnx"
    assert choose([*ONNX, *GGUF], "q8_0", "the place") == GGUF[1]


def test_in_a_folder_of_ones_own_model_onnx_is_meant() -> None:
    assert choose(ONNX, None, "the folder", local=True) == "onnx/model.onnx"


@pytest.mark.parametrize(
    ("files", "wanted", "complaint"),
    [
        (["model.safetensors", "config.json"], None, r"only weights for transformers.*edge-client export"),
        (["README.md"], None, r"no \.gguf and no \.onnx file; it has README\.md"),
        (GGUF, "q5_k_m", r"has no 'q5_k_m'; there are SmolLM2-135M-Instruct-IQ3_XS\.gguf, "),
        (GENAI, None, r"several models and none is the obvious one: cpu_and.*, cuda/.*; name one"),
        (GENAI, "int4", r"'int4' fits several files"),
        (GGUF, "README.md", r"README\.md in the place is no \.gguf or \.onnx file"),
        ([f"m{i}.gguf" for i in range(20)], None, "and 8 more"),
    ],
)
def test_what_cannot_be_chosen_says_what_there_is(files: list[str], wanted: str | None, complaint: str) -> None:
    with pytest.raises(DrafterError, match=complaint):
        choose([*files, "README.md"], wanted, "the place")


def test_what_belongs_to_a_file_comes_with_it() -> None:
    everything = [*ONNX, *BESIDE, *GENAI, *PIECES, *GGUF]
    assert companions("onnx/model_fp16.onnx", everything) == [
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "generation_config.json",
        "onnx/model_fp16.onnx_data",
    ]
    assert companions(GENAI[0], everything) == [*BESIDE[:4], *GENAI[1:4]]
    assert companions(PIECES[0], everything) == PIECES[1:]
    assert companions(GGUF[0], everything) == []
