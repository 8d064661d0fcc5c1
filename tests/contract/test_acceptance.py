"""The benchmark of guesses, on the demo pair."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner
from outrider.demo_pair import demo_folder

from benchmarks.acceptance import main


def test_the_demo_drafter_guesses_as_well_as_its_card_says(tmp_path: Path) -> None:
    options = ["--target", str(demo_folder() / "target"), "--prompt-set", "demo", "--max-tokens", "24", "--rounds", "1"]
    options += ["--drafter", "demo", "--drafter", "ngram", "--prompts", "10", "--json", str(tmp_path / "found.json")]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "found.json").read_text())["drafters"]
    model, lookup = found["demo"], found["ngram"]
    for name in ("greedy", "t0.8"):
        assert 0.65 < model[name]["acceptance"] < model[name]["one_of_two"] <= 1.0
        assert lookup[name]["acceptance"] < 0.5 * model[name]["acceptance"]
        assert model[name]["by_task"] == {"booking": model[name]["acceptance"]}
        assert model[name]["first_j_right"] == sorted(model[name]["first_j_right"], reverse=True)
    assert model["processor_ms_1_threads"][1] > lookup["processor_ms_1_threads"][1] > 0
