"""One tiny model, every format: fixtures for the drafters' contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from edge_client.drafters.base import Drafter
from edge_client.drafters.llama_cpp.drafter import LlamaCppDrafter
from edge_client.drafters.onnx.drafter import OnnxDrafter
from edge_client.drafters.settings import DeviceSettings
from edge_client.export.gguf_file import export_gguf
from edge_client.export.onnx_builder import export_onnx
from tests.contract.tiny_models import save_growing_onnx, save_transformers


@dataclass(frozen=True)
class Format:
    """make: writes the model at a path from a transformers folder. load: opens it. tolerance: how far a log-probability
    may lie from the transformers one; llama.cpp keeps its cache in float16. exact: no weights were rounded.
    """

    make: Callable[[Path, Path], None]
    load: Callable[..., Drafter]
    tolerance: float
    exact: bool = True


FORMATS = {
    "onnx-fp32": Format(lambda source, path: export_onnx(source, path, "fp32"), OnnxDrafter, 1e-4),
    "onnx-growing": Format(save_growing_onnx, OnnxDrafter, 1e-4),
    "onnx-int8": Format(lambda source, path: export_onnx(source, path, "int8"), OnnxDrafter, 0.5, exact=False),
    "gguf-f32": Format(lambda source, path: export_gguf(source, path, "f32"), LlamaCppDrafter, 3e-2),
    "gguf-q8_0": Format(lambda source, path: export_gguf(source, path, "q8_0"), LlamaCppDrafter, 0.5, exact=False),
}


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The transformers folder that all formats come from."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny") / "source"
    save_transformers(folder)
    return folder


@pytest.fixture(scope="session")
def reference(source: Path) -> torch.nn.Module:
    model: torch.nn.Module = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="session")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The model's path in a format, made when first asked for."""
    root = tmp_path_factory.mktemp("formats")
    paths: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in paths:
            path = root / (f"{name}.gguf" if name.startswith("gguf") else name)
            FORMATS[name].make(source, path)
            paths[name] = path
        return paths[name]

    return make


@dataclass(frozen=True)
class Case:
    """A format and the model in it; `load()` opens a fresh drafter."""

    name: str
    format: Format
    path: Path

    def load(self, *, context_tokens: int | None = None, **arguments: int) -> Drafter:
        settings = DeviceSettings(context_tokens=context_tokens, keeps_conversations=True)
        return self.format.load(self.path, settings=settings, **arguments)


@pytest.fixture(scope="module", params=list(FORMATS))
def case(request: pytest.FixtureRequest, made: Callable[[str], Path]) -> Case:
    return Case(request.param, FORMATS[request.param], made(request.param))


@pytest.fixture
def drafter(case: Case) -> Iterator[Drafter]:
    """A fresh drafter of each format."""
    opened = case.load()
    yield opened
    opened.close()
