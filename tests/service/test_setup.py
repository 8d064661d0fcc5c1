"""`edge-client setup`: what it asks, measures, checks and writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from edge_client.cli import main
from edge_client.setting_up.trial import Tried, best
from tests.harness import InProcessVerifier, LetterCodec
from tests.mock_engine import MockEngine


@pytest.fixture(scope="module")
def verifier() -> Iterator[InProcessVerifier]:
    with InProcessVerifier(MockEngine()) as running:
        yield running


def test_flags_alone_write_a_file_that_works(verifier: InProcessVerifier, tmp_path: Path) -> None:
    file = tmp_path / "edge.yaml"
    arguments = ["setup", "--json", "--target", verifier.address, "--drafter", "ngram", "--output", str(file)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert set(report["answer"]) <= set(LetterCodec.LETTERS)
    assert len(report["answer"]) == 12
    assert report["drafters"][0]["token_ms"] > 0
    assert yaml.safe_load(file.read_text()) == {"verifier": verifier.address, "drafter": "ngram", "threads": 1}
    assert file.stat().st_mode & 0o777 == 0o600
    asked = CliRunner().invoke(main, ["generate", "--config", str(file), "--prompt", "abc", "--max-tokens", "3"])
    assert asked.exit_code == 0, asked.output
    assert len(asked.stdout.strip()) == 3


def test_a_person_is_asked_and_told_what_to_type(verifier: InProcessVerifier, tmp_path: Path) -> None:
    file = tmp_path / "edge.yaml"
    file.write_text("old: true")
    said = f"{verifier.address}\nnowhere.gguf, ngram\ny\n"
    done = CliRunner().invoke(main, ["setup", "--output", str(file)], input=said)
    assert done.exit_code == 0, done.output
    assert "nowhere.gguf" in done.output  # and why not
    assert f"Now type: edge-client chat --config {file}" in done.output
    assert yaml.safe_load(file.read_text())["drafter"] == "ngram"


def test_who_does_not_want_to_replace_a_file_keeps_it(verifier: InProcessVerifier, tmp_path: Path) -> None:
    file = tmp_path / "edge.yaml"
    file.write_text("old: true")
    done = CliRunner().invoke(main, ["setup", "--output", str(file)], input=f"{verifier.address}\nngram\nn\n")
    assert done.exit_code == 1
    assert file.read_text() == "old: true"


def test_a_verifier_that_is_not_there_is_said_and_sends_to_the_doctor(tmp_path: Path) -> None:
    arguments = ["setup", "--yes", "--target", "127.0.0.1:1", "--output", str(tmp_path / "edge.yaml")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert "cannot be reached" in done.output
    assert "edge-client doctor" in done.output


def test_the_fastest_that_can_be_used_is_taken() -> None:
    slow, fast, broken = Tried("a", 9.0, 1, ""), Tried("b", 2.0, 1, ""), Tried("c", None, None, "broken")
    assert best([slow, fast, broken]) == "b"
    assert best([broken]) == "ngram"
