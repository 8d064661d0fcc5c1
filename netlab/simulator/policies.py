"""Policies by name. A policy is one way of pacing, or several of which the best in hindsight counts.

`sync` is the best of `sync:1` to `sync:16` and of rounds as long as pays, `best-fixed` the best of everything that does
not look at what happens: bounds for what choosing well at the start could give. `oracle` is no pace, see `oracle`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from netlab.simulator import rivals
from speculation.pace.adaptive import Adaptive
from speculation.pace.base import (
    BoundedLookahead,
    FixedLookahead,
    FixedTree,
    Objective,
    Pace,
    Pipelined,
    Streaming,
    Synchronous,
)
from speculation.pace.experience import Experience
from speculation.pace.policies import PolicyError
from speculation.pace.stopping import OptimalRounds

ORACLE = "oracle"
WIDTHS = ("1", "2", "3", "4")
SYNC_TOKENS = range(1, 17)
DEPTHS = (2, 4, 8, 16, 32, 64)
BLOCKS = (1, 2, 4, 8)
PATIENCES_MS = (2, 5, 10, 20)
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
    return lambda: {name: partial(Adaptive, objective, Experience())}  # its answers are one client's


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
    "streaming": _one("streaming", Streaming),
    "sync": _sync,
    "pipelined": lambda: {f"pipelined:{d}/4": partial(Pipelined, d, 4) for d in (8, 16, 32, 64)},
    "server-led": _one("server-led", BoundedLookahead),
    "adaptive": _adaptive("adaptive", Objective.LATENCY),
    "adaptive-balanced": _adaptive("adaptive-balanced", Objective.BALANCED),
    "adaptive-capacity": _adaptive("adaptive-capacity", Objective.CAPACITY),
    "best-server-led": lambda: {name: make for name, make in _fixed().items() if "@0/" in name},
    "best-pipelined": _pipelined,
    "best-fixed": _best_fixed,
    "heuristic": _one("heuristic", rivals.Heuristic),
    "confidence": _one("confidence", rivals.ConfidenceThreshold),
    "p-min": _one("p-min", lambda: rivals.ConfidenceThreshold(0.75, 16)),
    "entropy": _one("entropy", rivals.EntropyBound),
    "specdec++": _one("specdec++", rivals.SpecDecPlusPlus),
    "ucb": _ucb,
    "draft-ahead": lambda: {f"draft-ahead:{k}": partial(rivals.DraftAhead, k) for k in (3, 5, 8, 12, 16)},
}
_NUMBERED: dict[str, tuple[str, Callable[[float], Pace], Callable[[str], float]]] = {
    "fixed": ("fixed:DEPTH", lambda k: FixedLookahead(int(k)), int),
    "tree": ("tree:WIDTH", lambda k: FixedTree(int(k)), int),
    "sync": ("sync:TOKENS", lambda k: Synchronous(int(k)), int),
    "pipelined": ("pipelined:DEPTH", lambda k: Pipelined(int(k), min(4, int(k))), int),
    "draft-ahead": ("draft-ahead:TOKENS", lambda k: rivals.DraftAhead(int(k)), int),
    "confidence": ("confidence:THRESHOLD", rivals.ConfidenceThreshold, float),
    "entropy": ("entropy:THRESHOLD", rivals.EntropyBound, float),
    "specdec++": ("specdec++:THRESHOLD", rivals.SpecDecPlusPlus, float),
}


def names() -> list[str]:
    """All names that `find` takes, patterns included."""
    return [*_PLAIN, ORACLE, "adaptive:WIDTH", *(pattern for pattern, _, _ in _NUMBERED.values())]


def find(name: str) -> Policy:
    """The policy of that name, with fresh state. Raises PolicyError."""
    if name in _PLAIN:
        return Policy(name, _PLAIN[name]())
    if name == ORACLE:
        return Policy(name, {})
    kind, _, number = name.partition(":")
    if kind == "adaptive" and number in WIDTHS:
        return Policy(name, {name: partial(Adaptive, Objective.LATENCY, Experience(), width=int(number))})
    if kind in _NUMBERED:
        _, make, read = _NUMBERED[kind]
        try:
            value = read(number)
            make(value)
        except ValueError:
            value = -1.0
        if value > 0:
            return Policy(name, {name: partial(make, value)})
    raise PolicyError(f"there is no policy {name!r}; there are {', '.join(names())}")


def check(wanted: Iterable[str]) -> None:
    """Raises PolicyError for the first name that does not exist."""
    for name in wanted:
        find(name)
