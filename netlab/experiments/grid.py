"""A declared grid: every combination of its axes is an experiment of its own, called a cell.

::

    title = "Policies over round trips"
    policies = ["sync", "server-led", "adaptive"]
    rtt_ms = [0, 50, 200]
    acceptance = [0.75, 0.85]
    seeds = [1, 2]

A cell is all of that but the policies, which all answer the very same prompts in it. Whatever is impossible is refused
here, before anything runs.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

SHAPES = ("independent", "heavy")
MOST_MS = 60_000.0
NUMBER_AXES = {  # name: least, most, what it is
    "rtt_ms": (0.0, MOST_MS, "a round trip"),
    "jitter_ms": (0.0, MOST_MS, "a jitter"),
    "acceptance": (0.0, 1.0, "an acceptance"),
    "draft_ms": (0.0, MOST_MS, "a draft time"),
    "step_ms": (0.01, MOST_MS, "a step time"),
    "devices": (1, 64, "a number of devices"),
    "seeds": (0, 2**31, "a seed"),
}
WHOLE = ("devices", "seeds", "answers", "tokens")
FILE_AXES = ("profiles", "recordings")
NAME_AXES = ("policies", "profiles", "recordings")


class GridError(ValueError):
    """A grid that cannot be run. The message is a sentence that says what to change."""


@dataclass(frozen=True)
class Cell:
    """One combination of conditions, under which all of the policies run.

    profile: in place of round trip and jitter, which are None beside it. acceptance, recording: what pair is simulated;
    both None on the real programs. draft_ms: of a guess; 0 leaves a real drafter as fast as it is.
    """

    policies: tuple[str, ...]
    rtt_ms: float | None
    jitter_ms: float | None
    profile: str | None
    acceptance: float | None
    recording: str | None
    draft_ms: float
    step_ms: float
    devices: int
    seed: int
    answers: int
    tokens: int
    shape: str
    per_position_ms: float
    per_session_ms: float
    temperature: float
    drafter: str
    target: str

    @property
    def key(self) -> str:
        """Short, and another for every other cell; where the files that it names lie does not matter."""
        told = asdict(self) | {name: (v := getattr(self, name)) and Path(v).name for name in ("recording", "profile")}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Grid:
    """What is varied, and what is not. `parse` and `read` make only what can be run.

    policies: names. rtt_ms, jitter_ms, or in their place profiles. draft_ms: of a guess; on the real programs the least
    time of one. step_ms: of the target's step; on the real programs the least. devices: how many answers share a
    verifier at a time. seeds: another seed, another text. answers, tokens: of a cell and policy.

    Of the simulator only: acceptance, or in its place recordings (files of `netlab record`, relative to the grid's
    own); shape: of the hits; per_position_ms, per_session_ms: what positions and sessions add to a step. Of the real
    programs only: temperature, drafter, target.
    """

    policies: tuple[str, ...] = ()
    rtt_ms: tuple[float, ...] = ()
    jitter_ms: tuple[float, ...] = (0.0,)
    profiles: tuple[str, ...] = ()
    acceptance: tuple[float, ...] = ()
    recordings: tuple[str, ...] = ()
    draft_ms: tuple[float, ...] = (5.0,)
    step_ms: tuple[float, ...] = (30.0,)
    devices: tuple[int, ...] = (1,)
    seeds: tuple[int, ...] = (1,)
    answers: int = 6
    tokens: int = 128
    shape: str = "heavy"
    per_position_ms: float = 0.0
    per_session_ms: float = 0.0
    temperature: float = 0.8
    drafter: str = "demo"
    target: str = "demo"
    title: str = ""
    given: frozenset[str] = field(default=frozenset(), repr=False)  # what the file says, defaults left out

    def cells(self) -> list[Cell]:
        """All combinations, those that share a step time together: a real verifier has one for its life."""
        networks: list[tuple[float | None, float | None, str | None]] = [(None, None, name) for name in self.profiles]
        networks = networks or list(itertools.product(self.rtt_ms, self.jitter_ms, (None,)))
        pairs: list[tuple[float | None, str | None]] = [(None, name) for name in self.recordings]
        pairs = pairs or [(value, None) for value in self.acceptance] or [(None, None)]
        return [
            Cell(
                *(self.policies, *network, *pair, draft_ms, step_ms, devices, seed),
                *(self.answers, self.tokens, self.shape, self.per_position_ms, self.per_session_ms),
                *(self.temperature, self.drafter, self.target),
            )
            for step_ms, draft_ms, devices, pair, network, seed in itertools.product(
                self.step_ms, self.draft_ms, self.devices, pairs, networks, self.seeds
            )
        ]

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        told = {name: value for name, value in asdict(self).items() if name != "given"}
        return told | {name: [Path(one).name for one in told[name]] for name in FILE_AXES}

    @property
    def files(self) -> list[Path]:
        """Recordings, and profiles of the user's own."""
        return [Path(name) for name in (*self.recordings, *self.profiles) if name.endswith((".jsonl", ".toml"))]


def read(path: Path) -> Grid:
    """Read a grid file. Raises GridError."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise GridError(f"{path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise GridError(f"{path} is no TOML: {error}") from error
    grid = parse(values)

    def beside(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(path.parent / name) if name.endswith((".jsonl", ".toml")) else name for name in names)

    return replace(grid, profiles=beside(grid.profiles), recordings=beside(grid.recordings))


def parse(values: dict[str, Any]) -> Grid:
    """A grid from what its file says, names and numbers checked one by one. Raises GridError."""
    known = [f.name for f in fields(Grid) if f.name != "given"]
    for name in values:
        if name not in known:
            raise GridError(f"a grid has no {name!r}; it has {', '.join(known)}")
    ready: dict[str, Any] = {}
    for name, value in values.items():
        if name in NUMBER_AXES:
            ready[name] = tuple(_number(name, each) for each in _axis(name, value))
        elif name in NAME_AXES:
            ready[name] = tuple(_text(name, each) for each in _axis(name, value))
        elif name in ("title", "shape", "drafter", "target"):
            ready[name] = _text(name, value)
        else:
            ready[name] = _plain_number(name, value)
    grid = Grid(**ready, given=frozenset(values))
    _check(grid)
    return grid


def _axis(name: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise GridError(f"{name} is {value!r}; an axis is a list, such as {name} = [{json.dumps(value, default=str)}]")
    if not value:
        raise GridError(f"{name} is empty; leave it out or name at least one value")
    for index, each in enumerate(value):
        if each in value[:index]:
            raise GridError(f"{name} names {each!r} twice; the same cell would count twice")
    return value


def _number(name: str, value: Any) -> float:
    least, most, what = NUMBER_AXES[name]
    number = _plain_number(name, value)
    if not least <= number <= most:
        raise GridError(f"{name} names {number:g}; {what} takes {least:g} to {most:g}")
    return number


def _plain_number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise GridError(f"{name} names {value!r}, which is no number")
    if name in WHOLE and value != int(value):
        raise GridError(f"{name} names {value!r}, which is no whole number")
    return int(value) if name in WHOLE else float(value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise GridError(f"{name} names {value!r}, which is no name")
    return value


def _check(grid: Grid) -> None:
    """What no single value can tell."""
    if not grid.policies:
        raise GridError("the grid names no policies; for example policies = ['server-led', 'adaptive']")
    if not grid.rtt_ms and not grid.profiles:
        raise GridError("the grid names no networks: give rtt_ms or profiles")
    for one, other in (("profiles", "rtt_ms"), ("profiles", "jitter_ms"), ("recordings", "acceptance")):
        if {one, other} <= grid.given:
            raise GridError(f"{one} take the place of {other}; leave one of the two out")
    for name in grid.recordings:
        if not name.endswith(".jsonl"):
            raise GridError(f"recordings names {name!r}; a recording of netlab record is a .jsonl file")
    if len({file.name for file in grid.files}) < len(grid.files):
        raise GridError("two files have the same name; rename one, or nobody can tell them apart later")
    if grid.shape not in SHAPES:
        raise GridError(f"there is no shape {grid.shape!r}; there are {' and '.join(SHAPES)}")
    for name, least in (
        ("answers", 1),
        ("tokens", 2),
        ("temperature", 0),
        ("per_position_ms", 0),
        ("per_session_ms", 0),
    ):
        if not getattr(grid, name) >= least:
            raise GridError(f"{name} is {getattr(grid, name):g}; it must be at least {least}")
