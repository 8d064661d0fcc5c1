"""Policies by name. A policy is one way of pacing, or several of which the best in hindsight counts.

`sync` is the best of `sync:1` to `sync:16`, `best-fixed` the best of everything that does not look at what happens:
bounds for what choosing well at the start could give. `oracle` is no pace at all, see `oracle`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from netlab.simulator import rivals
from speculation import pace
from speculation.pace import PATIENCE_UNLIMITED_MS, Action, BoundedLookahead, Pace, Streaming, Synchronous, View

ORACLE = "oracle"
SYNC_TOKENS = range(1, 17)
DEPTHS = (2, 4, 8, 16, 32, 64)
BLOCKS = (1, 2, 4, 8)
PATIENCES_MS = (2, 5, 10, 20)
DEFAULT = ("streaming", "sync", "pipelined", "server-led", "adaptive")


class PolicyError(ValueError):
    """A policy that does not exist. The message lists those that do."""


@dataclass(frozen=True)
class Policy:
    """A name and the paces behind it. Each candidate makes a fresh pace for every answer."""

    name: str
    candidates: dict[str, Callable[[], Pace]]


class FixedLookahead(BoundedLookahead):
    """The server-led pace with everything set beforehand: depth, block and patience, and no look at the survival."""

    name = "fixed"

    def __init__(self, depth: int, patience_ms: int = 0, block_tokens: int = 4) -> None:
        super().__init__(depth, min_survival=0.0, block_tokens=block_tokens)
        self.patience_ms = patience_ms


class Pipelined(BoundedLookahead):
    """Led by the device, with blocks in flight one after another: no pause for a verdict."""

    name = "pipelined"
    patience_ms = PATIENCE_UNLIMITED_MS

    def __init__(self, depth: int = 64, block_tokens: int = 4) -> None:
        super().__init__(depth, min_survival=0.0, block_tokens=block_tokens, block_age_ms=float("inf"))

    def next(self, view: View) -> Action:
        action = super().next(view)
        if action is Action.WAIT and not view.depth and not view.in_flight:
            return Action.FLUSH  # nothing to guess with: ask for a token, or wait for ever
        return action


def _sync() -> dict[str, Callable[[], Pace]]:
    return {f"sync:{k}": partial(Synchronous, k) for k in SYNC_TOKENS}


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


def _one(name: str, make: Callable[[], Pace]) -> Callable[[], dict[str, Callable[[], Pace]]]:
    return lambda: {name: make}


def _best_fixed() -> dict[str, Callable[[], Pace]]:
    return {"streaming": Streaming, **_sync(), **_pipelined(), **_fixed()}


_PLAIN: dict[str, Callable[[], dict[str, Callable[[], Pace]]]] = {
    "streaming": _one("streaming", Streaming),
    "sync": _sync,
    "pipelined": lambda: {f"pipelined:{d}/4": partial(Pipelined, d, 4) for d in (8, 16, 32, 64)},
    "server-led": _one("server-led", BoundedLookahead),
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
    "sync": ("sync:TOKENS", lambda k: Synchronous(int(k)), int),
    "pipelined": ("pipelined:DEPTH", lambda k: Pipelined(int(k), min(4, int(k))), int),
    "draft-ahead": ("draft-ahead:TOKENS", lambda k: rivals.DraftAhead(int(k)), int),
    "confidence": ("confidence:THRESHOLD", rivals.ConfidenceThreshold, float),
    "entropy": ("entropy:THRESHOLD", rivals.EntropyBound, float),
    "specdec++": ("specdec++:THRESHOLD", rivals.SpecDecPlusPlus, float),
}


def names() -> list[str]:
    """All names that `find` takes, patterns included."""
    adaptive = ["adaptive"] if adaptive_pace() else []
    return [*_PLAIN, *adaptive, ORACLE, *(pattern for pattern, _, _ in _NUMBERED.values())]


def default() -> list[str]:
    """The policies compared when none are named; `adaptive` once there is one."""
    return [name for name in DEFAULT if name != "adaptive" or adaptive_pace()]


def find(name: str) -> Policy:
    """The policy of that name, with fresh state. Raises PolicyError."""
    if name in _PLAIN:
        return Policy(name, _PLAIN[name]())
    if name == "adaptive" and (adaptive := adaptive_pace()) is not None:
        return Policy(name, {name: adaptive})
    if name == ORACLE:
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
    raise PolicyError(f"there is no policy {name!r}; there are {', '.join(names())}")


def check(wanted: Iterable[str]) -> None:
    """Raises PolicyError for the first name that does not exist."""
    for name in wanted:
        find(name)


def adaptive_pace() -> Callable[[], Pace] | None:
    """The product's adaptive pace, from `speculation.pace` or from its own module."""
    for module in (pace, _module("speculation.adaptive")):
        for attribute in ("Adaptive", "AdaptivePace"):
            found = getattr(module, attribute, None)
            if isinstance(found, type) and issubclass(found, Pace):
                return found
    return None


def _module(name: str) -> object:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
