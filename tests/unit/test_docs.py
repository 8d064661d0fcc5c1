"""What pages promise is there: files and headings that links name; commands, options and extras that blocks show."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cloud_verifier.cli import main as cloud_verifier
from edge_client.cli import main as edge_client
from netlab.cli import main as netlab

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "models").rglob("README.md"))]
COMMANDS: dict[str, click.Command] = {"cloud-verifier": cloud_verifier, "edge-client": edge_client, "netlab": netlab}
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def headings(page: Path) -> set[str]:
    """Anchors, as GitHub makes them of headings."""
    text = _BLOCK.sub("", page.read_text())
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def shown(page: Path) -> Iterator[list[str]]:
    """Words of every command in the page's blocks, comments and continuation signs removed."""
    for block in _BLOCK.findall(page.read_text()):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if re.match(r"(\w+=\S+ )*(cloud-verifier|edge-client|netlab|make|pip|python -m) ?", line):
                for part in line.split("; "):
                    yield shlex.split(part, comments=True)


@each_page
def test_every_relative_link_resolves(page: Path) -> None:
    dead = []
    for link in _LINK.findall(page.read_text()):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in headings(target)):
            dead.append(link)
    assert not dead, f"{page.relative_to(ROOT)} links to what is not there: {dead}"


@each_page
def test_every_path_that_is_named_exists(page: Path) -> None:
    named = re.findall(r"`((?:cloud_verifier|edge_client|netlab|outrider_cli|speculation)/[\w./-]*)`", page.read_text())
    gone = [path for path in named if not (ROOT / path).exists()]
    assert not gone, f"{page.relative_to(ROOT)} names what is not there: {gone}"


@each_page
def test_every_command_that_is_shown_exists(page: Path) -> None:
    for words in shown(page):
        program, *rest = words or [""]
        if program not in COMMANDS:
            continue
        command, context = COMMANDS[program], click.Context(COMMANDS[program])
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            name = rest.pop(0)
            found = command.get_command(context, name)
            assert found is not None, (
                f"{page.relative_to(ROOT)}: {program} has no command {name!r}: {shlex.join(words)}"
            )
            command, context = found, click.Context(found)
        known = {
            "--help"
        } | {  # click adds that one when it is asked, and keeps it: not here, for other tests ask it, too
            flag for parameter in command.params for flag in parameter.opts + parameter.secondary_opts
        }
        unknown = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known]
        assert not unknown, f"{page.relative_to(ROOT)}: {program} {command.name} does not know {unknown}"


@each_page
def test_every_extra_target_and_module_that_is_shown_exists(page: Path) -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text()
    for named in re.findall(r"'\.\[([\w,]+)\]'", text):
        assert set(named.split(",")) <= extras, (
            f"{page.relative_to(ROOT)}: extras {named!r}; there are {sorted(extras)}"
        )
    for words in shown(page):
        if words[:1] == ["make"] and len(words) > 1:
            assert words[1] in targets, f"{page.relative_to(ROOT)}: make has no target {words[1]!r}"
    for module in re.findall(r"python -m ((?:benchmarks|models|netlab)[\w.]*\w)", text):
        assert importlib.util.find_spec(module) is not None, f"{page.relative_to(ROOT)}: no module {module}"


def test_readme_shows_commands() -> None:
    programs = {words[0] for words in shown(ROOT / "README.md") if words}
    assert {"cloud-verifier", "edge-client", "make", "pip"} <= programs, "else the tests above would test nothing"
