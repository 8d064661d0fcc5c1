"""Declared grids: what they mean, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from netlab.experiments import real, simulated
from netlab.experiments.grid import GridError, parse, read

GRIDS = Path(__file__).resolve().parents[2] / "netlab" / "grids"
PLAIN: dict[str, Any] = {"policies": ["adaptive"], "rtt_ms": [0, 50], "acceptance": [0.8]}


def test_cells_are_all_combinations_and_their_keys_differ() -> None:
    grid = parse(PLAIN | {"draft_ms": [2, 5], "devices": [1, 4], "seeds": [1, 2, 3]})
    cells = grid.cells()
    assert len(cells) == 2 * 2 * 2 * 3
    assert len({cell.key for cell in cells}) == len(cells)


def test_cells_with_the_same_step_time_stand_together() -> None:
    steps = [cell.step_ms for cell in parse(PLAIN | {"step_ms": [30, 8]}).cells()]
    assert steps == [30, 30, 8, 8]


def test_profiles_take_the_place_of_round_trips() -> None:
    cell = parse({"policies": ["adaptive"], "profiles": ["lte"], "acceptance": [0.8]}).cells()[0]
    assert (cell.rtt_ms, cell.jitter_ms, cell.profile) == (None, None, "lte")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"policy": ["x"]}, "a grid has no 'policy'; it has policies, rtt_ms"),
        ({"policies": []}, "policies is empty"),
        ({"rtt_ms": 50}, "rtt_ms is 50; an axis is a list, such as rtt_ms = [50]"),
        ({"rtt_ms": [50, 50]}, "rtt_ms names 50 twice"),
        ({"rtt_ms": [-1]}, "rtt_ms names -1; a round trip takes 0 to 60000"),
        ({"rtt_ms": ["fast"]}, "rtt_ms names 'fast', which is no number"),
        ({"acceptance": [1.5]}, "acceptance names 1.5; an acceptance takes 0 to 1"),
        ({"devices": [1.5]}, "devices names 1.5, which is no whole number"),
        ({"profiles": ["lte"]}, "profiles take the place of rtt_ms"),
        ({"recordings": ["a.jsonl"]}, "recordings take the place of acceptance"),
        ({"shape": "round"}, "there is no shape 'round'; there are independent and heavy"),
        ({"tokens": 1}, "tokens is 1; it must be at least 2"),
    ],
)
def test_impossible_grids_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(GridError) as refused:
        parse(PLAIN | change)
    assert sentence in str(refused.value)


def test_a_grid_without_policies_or_networks_is_refused() -> None:
    with pytest.raises(GridError, match="names no policies"):
        parse({"rtt_ms": [0]})
    with pytest.raises(GridError, match="names no networks"):
        parse({"policies": ["adaptive"]})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (PLAIN | {"policies": ["fast"]}, "there is no policy 'fast'; there are adaptive, server-led"),
        (PLAIN | {"policies": ["oracle"]}, "oracle is no pace of a device"),
        (PLAIN | {"draft_ms": [0]}, "draft_ms names 0"),
        (PLAIN | {"temperature": 0.5}, "a simulated pair has no temperature"),
        ({"policies": ["adaptive"], "rtt_ms": [0]}, "needs acceptance = [...] or recordings"),
        ({"policies": ["adaptive"], "profiles": ["moon"], "acceptance": [1]}, "no network profile 'moon'; there are"),
        ({"policies": ["adaptive"], "rtt_ms": [0], "recordings": ["/nowhere.jsonl"]}, "/nowhere.jsonl cannot be read"),
    ],
)
def test_what_the_simulator_cannot_run_is_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(GridError) as refused:
        simulated.check(parse(values))
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (PLAIN, "acceptance is the simulator's"),
        ({"policies": ["best-fixed"], "rtt_ms": [0]}, "there is no policy 'best-fixed'; there are adaptive"),
        ({"policies": ["adaptive"], "rtt_ms": [0], "drafter": "/nowhere"}, "cannot draft with '/nowhere'"),
    ],
)
def test_what_the_real_programs_cannot_run_is_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(GridError) as refused:
        real.check(parse(values))
    assert sentence in str(refused.value)


@pytest.mark.parametrize("file", sorted(GRIDS.glob("*.toml")), ids=lambda file: file.stem)
def test_the_shipped_grids_can_be_run(file: Path) -> None:
    grid = read(file)
    if "acceptance" in grid.given:
        simulated.check(grid)
    else:
        real.check(grid)


def test_recordings_are_found_beside_the_grid_and_may_move_with_it(tmp_path: Path) -> None:
    keys = set()
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "grid.toml"
        file.write_text('policies = ["adaptive"]\nrtt_ms = [0]\nrecordings = ["pair.jsonl"]\n')
        cell = read(file).cells()[0]
        assert cell.recording == str(tmp_path / folder / "pair.jsonl")
        keys.add(cell.key)
    assert len(keys) == 1
