"""The product's paces by name, as `--pace` takes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from speculation.pace.adaptive import Adaptive
from speculation.pace.base import BoundedLookahead, FixedLookahead, Objective, Pace, Pipelined, Streaming, Synchronous
from speculation.pace.experience import Experience
from speculation.pace.stopping import OptimalRounds

DEFAULT = "adaptive"
_PLAIN: dict[str, Callable[[], Pace]] = {
    "server-led": BoundedLookahead,
    "pipelined": Pipelined,
    "sync": OptimalRounds,
    "streaming": Streaming,
}
_NUMBERED: dict[str, Callable[[int], Pace]] = {"fixed": FixedLookahead, "sync": Synchronous, "pipelined": Pipelined}
NAMES = (DEFAULT, *_PLAIN, *(f"{kind}:K" for kind in _NUMBERED))


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
    if kind in _NUMBERED and number.isascii() and number.isdecimal() and 1 <= int(number) <= 1024:
        return partial(_NUMBERED[kind], int(number))
    raise PolicyError(
        f"there is no policy {name!r}; there are {', '.join(NAMES)} (K: a number of tokens from 1 to 1024)"
    )
