"""Peers beside ours on a tiny model: each writes its own greedy words, whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import LlamaForCausalLM

from benchmarks.peers.__main__ import agreement, main
from benchmarks.peers.kinds import PEERS, Models
from edge_client.export.gguf_file import export_gguf
from tests.contract.tiny_models import save_transformers

PROMPT = [0, 1, *range(300, 320), *range(300, 310)]  # something to look up


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("peers")
    save_transformers(folder / "target")
    export_gguf(folder / "target", folder / "target.gguf", "f32")
    return Models(folder / "target", folder / "target.gguf", folder / "target", threads=1)


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_writes_the_models_greedy_words(name: str, models: Models) -> None:
    model: Any = LlamaForCausalLM.from_pretrained(models.folder, dtype=torch.float32)
    expected = model.generate(torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False)[0, len(PROMPT) :].tolist()
    assert PEERS[name].missing(models) is None
    write = PEERS[name].load(models)
    assert list(write(PROMPT, 12)) == expected
    assert list(write(PROMPT, 5)) == expected[:5]


def test_what_is_not_there_is_told() -> None:
    nothing = Models(Path(), None, None, 1)
    assert PEERS["llama.cpp"].missing(nothing) == "no --gguf was given"
    assert PEERS["transformers, assistant"].missing(nothing) == "no --assistant was given"


def test_agreement_ends_at_the_first_difference() -> None:
    assert agreement([1, 2, 3, 4], [1, 2, 9, 4]) == 0.5
    assert agreement([1, 2], [1, 2, 3]) == 1.0
    assert agreement([], [1]) == 0.0


def test_a_peer_and_ours_write_the_same_words_over_the_link(models: Models, tmp_path: Path) -> None:
    file = tmp_path / "peers.json"
    options = ["--target", str(models.folder), "--peer", "transformers", "--rtt-ms", "2", "--json", str(file)]
    result = CliRunner().invoke(main, [*options, "--sessions", "2", "--prompts", "1", "--tokens", "6"])
    assert result.exit_code == 0, result.output
    assert "not run: SpecEdge: " in result.output
    report = json.loads(file.read_text())
    ours = [f"Outrider on transformers, {how}" for how in ("streaming", "drafter ngram")]
    assert report["same_words"] == dict.fromkeys(["transformers", *ours], 1.0)
    assert [(row["way"], row["rtt_ms"], row["sessions"]) for row in report["rows"]] == [
        (name, 2.0, 2) for name in ("transformers", *ours)
    ]
    assert all(row["tokens_per_s"] > 0 for row in report["rows"])
