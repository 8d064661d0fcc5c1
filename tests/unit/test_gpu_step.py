"""The benchmark of a GPU's step, run on a CPU with a tiny model: that it measures, compares and writes what it says."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks import gpu_step
from benchmarks.gpu_step import SHAPES, Mode, Words, build, costs_of_strict_mode, kv_bytes_per_token, main, read_bytes
from cloud_verifier.engines.base import EngineFull, SequenceId
from cloud_verifier.engines.torch_engine import TorchEngine
from cloud_verifier.engines.torch_engine.load import wrap

COMMAND = ["--device=cpu", "--shape=tiny", "--drafts=2", "--contexts=70", "--steps=3", "--warm-ups=2"]
COMMAND += ["--kernel=gathered"]


def test_it_runs_here_and_writes_what_it_found(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    result = CliRunner().invoke(main, [*COMMAND, "--sessions", "1,3", "--json", str(out)])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert {"commit", "date", "hardware", "copy_bytes_per_s", "product_operations_per_s", "rows"} <= found.keys()
    assert len(found["rows"]) == 2 * 2
    assert all(row["forward"] == "gathered" and row["limit_ms"] > 0 for row in found["rows"])
    assert all(row["step_ms_p10"] <= row["step_ms"] <= row["step_ms_p90"] for row in found["rows"])
    told = found["findings"]["tiny"]
    assert told["same_words_without_graphs"] is None  # there are no graphs on a CPU
    assert told["same_words_in_any_company"] is True
    assert len(told["cost_of_strict_mode"]) == 2
    assert "Strict mode is exact here" in told["engine"]["strict"]


def test_what_has_no_time_left_is_said(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    result = CliRunner().invoke(main, [*COMMAND, "--sessions", "1", "--budget-s", "0", "--json", str(out)])
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())["rows"]
    assert [row["skipped"] for row in rows] == ["no time was left"] * 2


def test_each_shape_has_a_process_of_its_own_and_all_are_in_one_file(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    arguments = ["--shape", "tiny", *COMMAND, "--sessions", "1", "--json", str(out)]
    subprocess.run([sys.executable, "-m", "benchmarks.gpu_step", *arguments], check=True, capture_output=True)
    assert len(json.loads(out.read_text())["rows"]) == 2 * 2


def test_a_cell_that_does_not_fit_or_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gpu_step.pretend

    def partly(engine: TorchEngine, opened: list[SequenceId], sessions: int, *sizes: int) -> None:
        if sessions == 2:
            raise EngineFull("9 pages are needed")
        if sessions == 3:
            raise RuntimeError("CUDA error: what now?\nand more")
        whole(engine, opened, sessions, *sizes)

    monkeypatch.setattr(gpu_step, "pretend", partly)
    plan = gpu_step.Plan((1, 2, 3, 4), (1,), (16,), 3, 0)
    device, found = gpu_step.Device(torch.device("cpu"), 1e9, 1e9), gpu_step.Findings()
    model = build("tiny", torch.device("cpu"))
    news = list(gpu_step.explore(model, plan, device, {}, found, time.monotonic() + 60))
    assert len(news) == len(found.rows) == 2 * 4
    assert [row.get("skipped") for row in found.rows[:4]] == [
        None,
        "9 pages are needed",
        "RuntimeError: CUDA error: what now?",
        None,
    ]
    assert found.summary()["cells_without_figures"] == 4


def test_the_limit_counts_what_a_step_reads() -> None:
    model = build("tiny", torch.device("cpu"))
    head = 512 * 64
    assert read_bytes(model) == sum(p.nbytes for p in model.parameters()) - 4 * head
    engine = wrap(model, name="tiny", strict=False, max_sequences=1, context_limit=64)
    assert kv_bytes_per_token(engine) == 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, width, bytes
    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in build(name, torch.device("meta")).parameters()) for name in SHAPES}
    assert sizes["llama-3.1-8b"] == 8_030_261_248
    assert sizes["qwen3-1.7b"] == 1_720_574_976


def test_words_and_costs_are_compared_case_by_case() -> None:
    alone: Words = {(64, 1, 1): [(5, 6)]}
    beside: Words = {(64, 1, 1): [(5, 6)], (64, 2, 1): [(5, 6), (7, 8)]}
    assert gpu_step.same(alone, beside) is True
    assert gpu_step.same({(64, 1, 1): [(5, 7)]}, beside) is False
    assert gpu_step.same({}, beside) is None
    assert gpu_step.same_company(beside) is True
    assert gpu_step.same_company(beside | {(64, 2, 1): [(5, 9), (7, 8)]}) is False
    assert gpu_step.same_company(alone) is None
    rows = [
        {"mode": str(Mode(strict, True)), "context": 64, "sessions": 1, "drafts": 1, "step_ms": ms}
        for strict, ms in ((False, 4.0), (True, 5.0))
    ]
    assert costs_of_strict_mode(rows, graphs=True) == [1.25]


def test_without_a_gpu_it_says_what_to_do() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 1
    assert "--device cpu --shape tiny" in result.output
    assert "is not a list of whole numbers" in CliRunner().invoke(main, ["--sessions", "1,x"]).output
