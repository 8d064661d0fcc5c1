"""`edge-client bench` on a lookup and on the demo's drafter: figures are there and make sense; none is judged here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edge_client.bench.bare_runtime import bare_loop
from edge_client.bench.measure import hold, measure, prompt
from edge_client.cli import main
from edge_client.drafters import load_drafter
from edge_client.drafters.base import DrafterError
from edge_client.drafters.lookup.history_store import HistoryStore
from edge_client.drafters.lookup.ngram import NgramDrafter
from edge_client.drafters.settings import DeviceSettings

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"
MODELS = {"gguf": DEMO / "drafter.gguf", "onnx": DEMO / "drafter-onnx"}


def test_a_lookup_is_measured_through_the_contract() -> None:
    figures = measure(lambda: NgramDrafter(context_tokens=400), tokens=8)
    assert [at.context_tokens for at in figures.contexts] == [64, 256]
    assert figures.prefill_tokens_per_s > 0
    assert all(at.token_ms > 0 and at.block_ms > 0 and at.rollback_ms >= 0 for at in figures.contexts)


@pytest.mark.parametrize("kind", MODELS)
def test_the_bare_loop_says_what_the_drafter_says(kind: str) -> None:
    drafter = load_drafter(MODELS[kind])
    assert drafter is not None
    bare = bare_loop(drafter, DeviceSettings())
    for context in (300, 20):  # more than a chunk, and after another
        bare.begin(prompt(context))
        hold(drafter, context)
        for _ in range(12):
            likely = int(drafter.candidates().ids[0])
            assert bare.token == likely
            drafter.feed([likely])
            bare.step()
    bare.close()
    drafter.close()


def test_only_models_have_a_bare_loop() -> None:
    with pytest.raises(DrafterError, match="not one model"):
        bare_loop(NgramDrafter(), DeviceSettings())


def test_the_command_prints_json_and_tables() -> None:
    command = ["bench", "--drafter", str(MODELS["onnx"]), "--tokens", "8", "--against", "bare"]
    found = CliRunner().invoke(main, [*command, "--json"])
    assert found.exit_code == 0, found.output
    report = json.loads(found.output)
    assert report["drafter"] == "drafter-onnx"
    assert report["load_ms"] > 0
    assert {"context_tokens", "bare_ms", "ours_ms", "overhead_ms", "overhead_percent"} == set(report["against_bare"][0])
    shown = CliRunner().invoke(main, command)
    assert "overhead" in shown.output


def test_what_cannot_be_measured_is_said() -> None:
    found = CliRunner().invoke(main, ["bench", "--drafter", "none"])
    assert found.exit_code == 1
    assert "nothing to measure" in found.output


def test_past_answers_can_be_seen_and_erased(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platformdirs.user_data_path", lambda name: tmp_path / name)
    store = HistoryStore()
    store.add("sha256:1", [1, 2, 3])
    assert str(store.files()[0]) in CliRunner().invoke(main, ["history", "show"]).output
    assert "Deleted 1 file of" in CliRunner().invoke(main, ["history", "erase"]).output
    assert "No past answers" in CliRunner().invoke(main, ["history", "show"]).output
