"""What the self-test has found is remembered, and is not taken on trust."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import torch

from cloud_verifier.engines.llama_cpp import load as llama_cpp_load
from cloud_verifier.engines.llama_cpp.load import LlamaCppSettings
from cloud_verifier.engines.paged import PagedEngine
from cloud_verifier.engines.self_test import StrictReport
from tests.contract.test_engine import all_logits, build, ids
from tests.contract.tiny_models import save_gguf

torch_load = import_module("cloud_verifier.engines.torch_engine.load")


class Start:
    """Starts an engine, and counts how often it is put to the whole self-test."""

    def __init__(self, engine: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.file = folder / "cache" / "self-tests.json"
        self.tests = 0
        patch.setattr(platformdirs, "user_cache_path", lambda *_: folder / "cache")
        module, name = (torch_load, "self_test") if engine == "torch" else (llama_cpp_load, "strictness")
        whole: Callable[..., StrictReport] = getattr(module, name)

        def counted(*arguments: Any) -> StrictReport:
            self.tests += 1
            return whole(*arguments)

        patch.setattr(module, name, counted)
        self._path = folder / ("model" if engine == "torch" else "tiny.gguf")
        self.save(build("llama"))

    def save(self, model: Any) -> None:
        if self._path.suffix:
            save_gguf(model, self._path, "q8_0")
        else:
            model.save_pretrained(self._path)

    def __call__(self, *, remember: bool = True, threads: int = 1, max_sequences: int = 3) -> PagedEngine:
        self.tests = 0
        if self._path.suffix:
            settings = LlamaCppSettings(threads=threads, max_sequences=max_sequences, remember=remember)
            return llama_cpp_load.load(self._path, settings)
        engine: PagedEngine = torch_load.load(
            str(self._path), device="cpu", threads=threads, max_sequences=max_sequences, remember=remember
        )
        return engine


@pytest.fixture(params=["torch", "llama.cpp"])
def start(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    return Start(request.param, tmp_path, monkeypatch)


def test_the_second_start_tests_no_more_and_serves_the_same(start: Start) -> None:
    first = start()
    assert start.tests >= 1
    expected, info = all_logits(first, first.open(), ids(90)), first.info
    second = start()
    assert start.tests == 0
    assert second.info == info
    assert second.info.strict
    assert torch.equal(all_logits(second, second.open(), ids(90)), expected)


def test_other_weights_and_settings_are_tested_anew(start: Start) -> None:
    start()
    start(max_sequences=2)
    assert start.tests >= 1
    model = build("llama")
    with torch.no_grad():
        next(model.parameters())[0, 0] += 0.5
    start.save(model)
    start()
    assert start.tests >= 1
    assert len(json.loads(start.file.read_bytes())) == 3


def test_an_engine_that_computes_otherwise_is_tested_anew(start: Start) -> None:
    info = start().info
    content = json.loads(start.file.read_bytes())
    for outcome in content.values():
        outcome["check"] = "0" * 64  # as if there had been other bits on the day of the test
    start.file.write_text(json.dumps(content))
    assert start().info == info
    assert start.tests >= 1
    start()
    assert start.tests == 0


@pytest.mark.parametrize("content", ["", "[]", "{", '{"%s": 3}', '{"%s": {}}', '{"%s": {"rows": 1, "way": "no"}}'])
def test_a_damaged_file_costs_a_test(start: Start, content: str) -> None:
    info = start().info
    (key,) = json.loads(start.file.read_bytes())
    start.file.write_text(content % key if "%s" in content else content)
    assert start().info == info
    assert start.tests >= 1


def test_nothing_is_kept_unless_asked_for(start: Start) -> None:
    start(remember=False)
    assert not start.file.exists()


def test_a_folder_that_cannot_be_written_costs_a_test(start: Start) -> None:
    start.file.parent.write_text("no folder")
    start()
    assert start().info.strict
    assert start.tests >= 1


def test_what_is_not_strict_is_not_remembered(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> StrictReport:
        return StrictReport(False, "Strict mode is not exact here: a trial of this test.")

    monkeypatch.setattr(torch_load, "self_test", refuse)
    monkeypatch.setattr(llama_cpp_load, "strictness", refuse)
    assert not start().info.strict
    assert not start.file.exists()
