"""Policies by name: the product's paces, and what they are compared with.

A policy is one way of pacing, or several of which the best in hindsight counts. `sync` is the best of `sync:1` to
`sync:16` and of rounds as long as pays, `best-fixed` the best of everything that does not look at what happens: bounds
for what choosing well at the start could give. `oracle` and `co-located` are no paces, see the modules of these names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from netlab.simulator import rivals
from speculation.pace import policies as paces
from speculation.pace.base import FixedLookahead, Objective, Pace, Pipelined, Streaming, Synchronous
from speculation.pace.policies import PolicyError
from speculation.pace.stopping import OptimalRounds
from speculation.pace.tree_rounds import SPECINFER, BestFirst, FixedShape

ORACLE = "oracle"
CO_LOCATED = "co-located"
NO_PACES = (ORACLE, CO_LOCATED)
SYNC_TOKENS = range(1, 17)
DEPTHS = (2, 4, 8, 16, 32, 64)
BLOCKS = (1, 2, 4, 8)
PATIENCES_MS = (2, 5, 10, 20)
NODES = (4, 8, 16, 32, 64)
SHAPES = (SPECINFER, (4, 2, 2, 1, 1), (2, 2, 1, 1, 1), (2,) * 4, (3, 1, 1, 1), (2, 1, 1, 1, 1, 1, 1, 1))
DEFAULT = ("streaming", "sync", "pipelined", "server-led", "adaptive")


@dataclass(frozen=True)
class Policy:
    """A name and the paces behind it. Each candidate makes a fresh pace for every answer."""

    name: str
    candidates: dict[str, Callable[[], Pace]]


def _sync() -> dict[str, Callable[[], Pace]]:
    return {"sync": OptimalRounds, **{f"sync:{k}": partial(Synchronous, k) for k in SYNC_TOKENS}}


def _pipelined() -> dict[str, Callable[[], Pace]]:
    return {f"pipelined:{d}/{b}": partial(Pipelined, d, b) for d in DEPTHS for b in BLOCKS if b <= d}


def _fixed() -> dict[str, Callable[[], Pace]]:
    return {
        f"fixed:{d}@{p}/{b}": partial(FixedLookahead, d, p, b)
        for d in DEPTHS
        for p in (0, *PATIENCES_MS)
        for b in ((1, 8) if p else BLOCKS)
        if b <= d
    }


def _ucb() -> dict[str, Callable[[], Pace]]:
    arms = rivals.Arms()
    return {"ucb": lambda: rivals.UcbStop(arms)}


def _adaptive(name: str, objective: Objective) -> Callable[[], dict[str, Callable[[], Pace]]]:
    return lambda: {name: paces.find(paces.DEFAULT, objective)}  # its answers are one client's


def _shapes() -> dict[str, Callable[[], Pace]]:
    return {f"multi-candidate:{'x'.join(map(str, shape))}": partial(FixedShape, shape) for shape in SHAPES}


def _one(name: str, make: Callable[[], Pace]) -> Callable[[], dict[str, Callable[[], Pace]]]:
    return lambda: {name: make}


def _best_fixed() -> dict[str, Callable[[], Pace]]:
    return {
        "streaming": Streaming,
        **{f"sync:{k}": partial(Synchronous, k) for k in SYNC_TOKENS},
        **_pipelined(),
        **_fixed(),
    }


_PLAIN: dict[str, Callable[[], dict[str, Callable[[], Pace]]]] = {
    "sync": _sync,
    "pipelined": lambda: {f"pipelined:{d}/4": partial(Pipelined, d, 4) for d in (8, 16, 32, 64)},
    "adaptive-balanced": _adaptive("adaptive-balanced", Objective.BALANCED),
    "adaptive-capacity": _adaptive("adaptive-capacity", Objective.CAPACITY),
    "best-server-led": lambda: {name: make for name, make in _fixed().items() if "@0/" in name},
    "best-pipelined": _pipelined,
    "best-fixed": _best_fixed,
    "multi-candidate": _shapes,
    "opt-tree": lambda: {f"opt-tree:{n}": partial(BestFirst, n) for n in NODES},
    "heuristic": _one("heuristic", rivals.Heuristic),
    "confidence": _one("confidence", rivals.ConfidenceThreshold),
    "p-min": _one("p-min", lambda: rivals.ConfidenceThreshold(0.75, 16)),
    "entropy": _one("entropy", rivals.EntropyBound),
    "specdec++": _one("specdec++", rivals.SpecDecPlusPlus),
    "ucb": _ucb,
    "draft-ahead": lambda: {f"draft-ahead:{k}": partial(rivals.DraftAhead, k) for k in (3, 5, 8, 12, 16)},
}
_NUMBERED: dict[str, tuple[str, Callable[[float], Pace], Callable[[str], float]]] = {
    "draft-ahead": ("draft-ahead:TOKENS", lambda k: rivals.DraftAhead(int(k)), int),
    "confidence": ("confidence:THRESHOLD", rivals.ConfidenceThreshold, float),
    "entropy": ("entropy:THRESHOLD", rivals.EntropyBound, float),
    "specdec++": ("specdec++:THRESHOLD", rivals.SpecDecPlusPlus, float),
}


def names() -> list[str]:
    """All names that `find` takes, patterns included."""
    of_paces = [name for name in paces.NAMES if name not in _PLAIN]
    return [*of_paces, *_PLAIN, *NO_PACES, *(pattern for pattern, _, _ in _NUMBERED.values())]


def find(name: str) -> Policy:
    """The policy of that name, with fresh state. Raises PolicyError."""
    if name in _PLAIN:
        return Policy(name, _PLAIN[name]())
    if name in NO_PACES:
        return Policy(name, {})
    kind, _, number = name.partition(":")
    if kind in _NUMBERED:
        _, make, read = _NUMBERED[kind]
        try:
            value = read(number)
            make(value)
        except ValueError:
            value = -1.0
        if value > 0:
            return Policy(name, {name: partial(make, value)})
    try:
        return Policy(name, {name: paces.find(name)})
    except PolicyError:
        raise PolicyError(f"there is no policy {name!r}; there are {', '.join(names())}") from None


def check(wanted: Iterable[str]) -> None:
    """Raises PolicyError for the first name that does not exist."""
    for name in wanted:
        find(name)
