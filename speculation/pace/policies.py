"""The product's paces by name, as `--pace` takes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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
from speculation.pace.stopping import OptimalRounds
from speculation.pace.tree_rounds import BestFirst, FixedShape

DEFAULT = "adaptive"
_PLAIN: dict[str, Callable[[], Pace]] = {
    "server-led": BoundedLookahead,
    "pipelined": Pipelined,
    "sync": OptimalRounds,
    "streaming": Streaming,
    "multi-candidate": FixedShape,
}
_NUMBERED: dict[str, Callable[[int], Pace]] = {
    "fixed": FixedLookahead,
    "sync": Synchronous,
    "pipelined": Pipelined,
    "opt-tree": BestFirst,
}
MAX_WIDTH = 4  # guesses at one place: a fourth is right in one of a hundred
NAMES = (DEFAULT, *_PLAIN, *(f"{kind}:K" for kind in _NUMBERED), f"{DEFAULT}:W", "tree:W")


class PolicyError(ValueError):
    """A policy that does not exist. The message lists those that do."""


def find(name: str, objective: Objective = Objective.LATENCY) -> Callable[[], Pace]:
    """Makes one pace per session; the adaptive ones share what they measure, and have an objective.

    Raises PolicyError.
    """
    if name == DEFAULT:
        return partial(Adaptive, objective, Experience())
    if name in _PLAIN:
        return _PLAIN[name]
    kind, _, number = name.partition(":")
    count = int(number) if number.isascii() and number.isdecimal() else 0
    if kind in _NUMBERED and 1 <= count <= 1024:
        return partial(_NUMBERED[kind], count)
    if kind == "tree" and 1 <= count <= MAX_WIDTH:
        return partial(FixedTree, count)
    if kind == DEFAULT and 1 <= count <= MAX_WIDTH:
        return partial(Adaptive, objective, Experience(), width=count)
    raise PolicyError(
        f"there is no policy {name!r}; there are {', '.join(NAMES)} (K: a number of tokens from 1 to 1024; W: guesses "
        f"at one place, 1 to {MAX_WIDTH})"
    )
