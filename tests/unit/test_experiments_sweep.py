"""Sweeps: interrupted and resumed, mixed commits, and what is drawn from them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from netlab import provenance
from netlab.cli import main
from netlab.experiments import figures, page, results, simulated
from netlab.experiments.grid import Cell
from netlab.experiments.rows import Origin, Row

GRID = """
title = "A <small> grid"
policies = ["streaming", "sync:4", "adaptive"]
rtt_ms = [0, 100]
acceptance = [0.8]
devices = [1, 2]
answers = 2
tokens = 24
"""


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(provenance, "commit", lambda: "abc1234")
    file = tmp_path / "grid.toml"
    file.write_text(GRID)
    return file


def sweep(grid: Path, out: Path, *more: str) -> Result:
    return CliRunner().invoke(main, ["sweep", str(grid), "--simulate", "--out", str(out), "--jobs", "1", *more])


def test_an_interrupted_sweep_goes_on_and_ends_as_one_in_one_go(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert sweep(grid, whole).exit_code == 0
    run = simulated.run
    played: list[str] = []

    def interrupted(cell: Cell, origin: Origin) -> list[Row]:
        if len(played) == 2:
            raise KeyboardInterrupt
        played.append(cell.key)
        return run(cell, origin)

    monkeypatch.setattr(simulated, "run", interrupted)
    first = sweep(grid, halves)
    assert first.exit_code == 130
    assert "2 of 4 cells are finished and safe" in first.output
    assert not (halves / "results.parquet").exists()
    assert len(results.read(halves).rows) == 2 * 3 * 2
    monkeypatch.setattr(simulated, "run", run)
    second = sweep(grid, halves)
    assert second.exit_code == 0, second.output
    assert "2 of 4 cells are finished already" in second.output
    assert pq.read_table(halves / "results.parquet").equals(pq.read_table(whole / "results.parquet"))
    assert len(json.loads((halves / "manifest.json").read_text())["runs"]) == 2


def test_parallel_processes_give_the_same_table(grid: Path, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert sweep(grid, alone).exit_code == 0
    assert sweep(grid, together, "--jobs", "2").exit_code == 0
    assert pq.read_table(alone / "results.parquet").equals(pq.read_table(together / "results.parquet"))


@pytest.mark.parametrize(
    ("commit", "sentence"),
    [("fff0000", "commit abc1234, and this is fff0000"), ("abc1234+", "commit abc1234, and this is abc1234+")],
)
def test_other_code_is_not_mixed_in_silently(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit: str, sentence: str
) -> None:
    out = tmp_path / "out"
    assert sweep(grid, out).exit_code == 0
    dropped = sorted((out / "cells").iterdir())[0]
    dropped.unlink()
    monkeypatch.setattr(provenance, "commit", lambda: commit)
    refused = sweep(grid, out)
    assert refused.exit_code == 2
    assert sentence in " ".join(refused.output.split())
    mixed = sweep(grid, out, "--allow-mixed")
    assert mixed.exit_code == 0, mixed.output
    assert set(pq.read_table(out / "results.parquet")["commit"].to_pylist()) == {"abc1234", commit}


def test_a_changed_tree_is_no_code_to_resume_with(grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "commit", lambda: "abc1234+")
    assert sweep(grid, tmp_path / "out").exit_code == 0
    refused = sweep(grid, tmp_path / "out")
    assert refused.exit_code == 2
    assert "a working tree with changes" in " ".join(refused.output.split())


def test_another_grid_is_refused(grid: Path, tmp_path: Path) -> None:
    assert sweep(grid, tmp_path / "out").exit_code == 0
    grid.write_text(GRID.replace("[0, 100]", "[0, 50]"))
    refused = sweep(grid, tmp_path / "out")
    assert refused.exit_code == 2
    assert "another grid (rtt_ms differ)" in " ".join(refused.output.split())


def test_a_grid_that_has_grown_may_be_mixed_in_and_keeps_what_is_finished(grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert sweep(grid, out).exit_code == 0
    grid.write_text(GRID.replace("[0, 100]", "[0, 50]"))
    grown = sweep(grid, out, "--allow-mixed")
    assert grown.exit_code == 0, grown.output
    assert "2 of 4 cells are finished already" in grown.output
    assert results.read(out).values("rtt_ms") == [0, 50]


def test_a_recording_that_has_changed_is_never_mixed_in(grid: Path, tmp_path: Path) -> None:
    recording = Path(__file__).resolve().parents[1] / "data" / "demo_pair.jsonl"
    mine = tmp_path / "pair.jsonl"
    mine.write_text(recording.read_text())
    grid.write_text(GRID.replace("acceptance = [0.8]", 'recordings = ["pair.jsonl"]'))
    assert sweep(grid, tmp_path / "out").exit_code == 0
    assert results.read(tmp_path / "out").values("pair") == ["pair"]
    mine.write_text("".join(recording.read_text().splitlines(keepends=True)[:-1]))
    refused = sweep(grid, tmp_path / "out", "--allow-mixed")
    assert refused.exit_code == 2
    assert "another pair.jsonl" in " ".join(refused.output.split())


def test_a_folder_with_other_files_is_refused(grid: Path, tmp_path: Path) -> None:
    refused = sweep(grid, tmp_path)
    assert refused.exit_code == 2
    assert "holds files, but no manifest.json" in " ".join(refused.output.split())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["sweep", "nowhere", "--simulate", "--out", "x"], "there are capacity, demo-pair"),
        (["sweep", "round-trips", "--out", "x"], "say where to run it: --simulate, in the simulator, or --real"),
        (["race", "--policies", "fast"], "there is no policy 'fast'"),
        (["race", "--profile", "moon"], "no network profile 'moon'"),
        (["race", "--profile", "lte", "--rtt-ms", "5"], "a profile has its own round trip"),
        (["agree", "--policies", "adaptive"], "name both kinds"),
        (["agree", "--draft-ms", "0"], "a draft time must be above 0 here"),
        (["timeline", "--simulate", "--policies", "fast", "--out", "x"], "there is no policy 'fast'"),
    ],
)
def test_wrong_arguments_are_refused_with_a_sentence(arguments: list[str], sentence: str) -> None:
    refused = CliRunner().invoke(main, arguments, terminal_width=200)
    assert refused.exit_code == 2
    assert sentence in " ".join(refused.output.split())


def test_a_long_sweep_asks_for_a_yes(tmp_path: Path) -> None:
    file = tmp_path / "long.toml"
    file.write_text(GRID.replace("answers = 2", "answers = 600").replace('"sync:4"', '"sync", "best-fixed"'))
    refused = sweep(file, tmp_path / "out")
    file.write_text('policies = ["adaptive"]\nrtt_ms = [0, 50]\nanswers = 900\n')
    real = CliRunner().invoke(main, ["sweep", str(file), "--real", "--out", str(tmp_path / "out")])
    assert refused.exit_code == real.exit_code == 2
    assert "or run it with --yes" in " ".join(refused.output.split())
    assert "may take 3.8 hours" in " ".join(real.output.split())


def test_figures_have_their_axes_labelled(grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert sweep(grid, out).exit_code == 0
    drawn = CliRunner().invoke(main, ["plot", str(out), "--out", str(tmp_path / "figures")])
    assert drawn.exit_code == 0, drawn.output
    names = {"time-per-token", "speed-up", "target-forwards", "lookahead", "gain-and-price", "capacity"}
    assert {file.name for file in (tmp_path / "figures").iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("png", "svg")
    }
    expected = {
        "time-per-token": {"time per token (ms)"},
        "speed-up": {"speed-up over streaming"},
        "target-forwards": {"target forwards per token"},
        "lookahead": {"lookahead when sending (tokens)"},
        "gain-and-price": {"speed-up over streaming", "target forwards per token", "bytes up per token"},
        "capacity": {"time per token (ms)", "target forwards per token", "engine time per token (ms)"},
    }
    for plot in figures.draw(results.read(out)):
        axes = plot.figure.axes
        assert {axis.get_ylabel() for axis in axes} - {""} == expected[plot.name]
        assert {axis.get_xlabel() for axis in axes} - {""} == {
            "devices sharing the verifier" if plot.name == "capacity" else "round-trip time (ms)"
        }


def test_the_report_is_one_escaped_page(grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert sweep(grid, out).exit_code == 0
    drawn = CliRunner().invoke(main, ["timeline", "--simulate", "--policies", "adaptive", "--out", str(out)])
    assert drawn.exit_code == 0, drawn.output
    assert CliRunner().invoke(main, ["plot", str(out / "timeline.json"), "--out", str(tmp_path)]).exit_code == 0
    assert (tmp_path / "timeline.svg").is_file()
    file = tmp_path / "report.html"
    assert CliRunner().invoke(main, ["report", str(out), "--out", str(file)]).exit_code == 0
    text = file.read_text()
    assert "<h1>A &lt;small&gt; grid</h1>" in text
    assert "<small>" not in text
    assert "<script" not in text
    assert 'id="timeline"' in text
    assert "abc1234" in text
    links = re.findall(r'(?:href|src)="([^"]*)"', text)
    assert all(link.startswith("#") for link in links)
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(set(ids)) == len(ids), "figures must not share ids on one page"


def test_words_that_differ_are_shouted(grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = simulated.run

    def wrong(cell: Cell, origin: Origin) -> list[Row]:
        rows = run(cell, origin)
        object.__setattr__(rows[-1], "same_words", False)
        return rows

    monkeypatch.setattr(simulated, "run", wrong)
    done = sweep(grid, tmp_path / "out")
    assert done.exit_code == 1
    assert "words differ" in done.output
    assert "Words differ between policies" in page.page(results.read(tmp_path / "out"))


def test_the_json_of_a_simulation_can_be_drawn(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = ["--rtt-ms", "0,50", "--policies", "streaming,adaptive", "--answers", "1", "--tokens", "16"]
    assert CliRunner().invoke(main, ["simulate", *arguments, "--json", str(file)]).exit_code == 0
    drawn = CliRunner().invoke(main, ["plot", str(file), "--out", str(tmp_path)])
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "time-per-token.svg").is_file()
    assert CliRunner().invoke(main, ["report", str(file), "--out", str(tmp_path / "r.html")]).exit_code == 0


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text("{}")
    for source in (file, tmp_path):
        refused = CliRunner().invoke(main, ["plot", str(source), "--out", str(tmp_path / "figures")])
        assert refused.exit_code == 2
        assert str(source) in refused.output.replace("\n", "")


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0, 2.0), (100, 0.0)], 50),
        ([(0, 2.0), (100, 1.0)], None),
        ([(0, 0.5), (100, 0.4)], None),
        ([(0, 2.0), (50, 0.5), (100, 1.5), (200, 0.5)], 150),
    ],
)
def test_crossovers(points: list[tuple[float, float]], expected: float | None) -> None:
    assert figures.crossover(points) == expected
