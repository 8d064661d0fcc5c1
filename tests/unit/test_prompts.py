"""Sets of prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from netlab import demo, prompts
from netlab.cli import main
from netlab.prompts import PromptSetError


def test_the_bundled_set_has_six_of_each_kind_of_work_in_turns() -> None:
    found = prompts.find("tasks")
    kinds = ("chat", "code", "summary", "maths", "translation", "retrieval")
    assert found.tasks == kinds * 6
    assert len(set(found.prompts)) == 36
    assert found.first(38).prompts[-2:] == found.prompts[:2]
    assert found.first(38).tasks[-2:] == kinds[:2]


def test_the_demo_pairs_openings_are_a_set() -> None:
    assert prompts.find("demo").first(3).prompts == prompts.OPENINGS[:3] == prompts.openings(3)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[tasks]\nlong = ["a", "b", "c"]\nshort = ["d"]\n')
    found = prompts.find(str(file))
    assert found.prompts == ("a", "d", "b", "c")
    assert found.tasks == ("long", "short", "long", "long")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", r"expected the table \[tasks\]"),
        ("[tasks]\nchat = []\n", r"expected the table \[tasks\]"),
        ("[tasks]\nchat = 'one'\n", "expected a list of texts for the task chat"),
        ("[tasks]\nchat = ['one', ' ']\n", "expected a list of texts for the task chat"),
        ("tasks", "is no TOML"),
    ],
)
def test_a_file_that_is_no_set_is_refused(content: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "odd.toml"
    file.write_text(content)
    with pytest.raises(PromptSetError, match=sentence):
        prompts.find(str(file))
    with pytest.raises(PromptSetError, match="cannot be read"):
        prompts.find(str(tmp_path / "none.toml"))


def test_a_set_that_is_not_there_is_told_before_anything_starts() -> None:
    sentence = "there is no set of prompts 'task'; there are demo and tasks, or the path of a .toml file"
    raced = CliRunner().invoke(main, ["race", "--prompt-set", "task"], terminal_width=400)
    assert raced.exit_code == 2
    assert sentence in raced.output
    shown = CliRunner().invoke(demo.main, ["--prompt-set", "task"], terminal_width=400)
    assert shown.exit_code == 1
    assert sentence in shown.output
