"""One answer as it happened: who drafted, what was in flight, what was committed.

A space-time picture. To the right runs the device's clock, upward the answer. A dot is a guess when it was drawn, a
slanted line a message on its way to the verifier, the stairs are the log as the device knows it. A triangle is a second
guess beside a first, and a line leads on to what was drawn after it; both are green where it was right.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeGuard

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from netlab.experiments import style
from netlab.experiments.drawn_tree import Fate, Guess, guesses_of
from speculation.pace.observed import Committed, Diary, Drafted, Event, Sent

FORMAT, VERSION = "outrider-timeline", 2
KINDS: dict[str, type[Event]] = {"drafted": Drafted, "sent": Sent, "committed": Committed}
RIGHT, WRONG, UNUSED, OWN, SAVED = "#0072b2", "#d55e00", "#b8b8b8", "#595959", "#009e73"
_RING: dict[str, Any] = {"marker": "o", "markersize": 7, "markerfacecolor": "none", "markeredgewidth": 1.1}
COLOURS = {Fate.RIGHT: RIGHT, Fate.WRONG: WRONG, Fate.UNDECIDED: UNUSED}


class TimelineError(ValueError):
    """A timeline that cannot be shown. The message is a sentence."""


@dataclass(frozen=True)
class Ride:
    """A diary with its name. rtt_ms: of the link, for messages whose arrival the device never hears of."""

    policy: str
    rtt_ms: float
    diary: Diary


def write(rides: Sequence[Ride], head: dict[str, Any], path: Path) -> None:
    """Write rides as JSON. Raises OSError."""
    names = {kind: name for name, kind in KINDS.items()}
    told = [
        {
            "policy": ride.policy,
            "rtt_ms": ride.rtt_ms,
            "began_ms": ride.diary.began_ms,
            "events": [{"kind": names[type(event)]} | asdict(event) for event in ride.diary.events],
        }
        for ride in rides
    ]
    path.write_text(json.dumps({"format": FORMAT, "version": VERSION, **head, "rides": told}, indent=1) + "\n")


def is_one(path: Path) -> bool:
    """Whether a file says of itself that it is a timeline."""
    try:
        return path.suffix == ".json" and json.loads(path.read_text(encoding="utf-8")).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def read(path: Path) -> tuple[list[Ride], dict[str, Any]]:
    """Rides and head of a file. Raises TimelineError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if (value.pop("format"), value.pop("version")) != (FORMAT, VERSION):
            raise TimelineError(f"{path} is no {FORMAT} of version {VERSION}")
        rides = [
            Ride(told["policy"], told["rtt_ms"], Diary([_event(event) for event in told["events"]], told["began_ms"]))
            for told in value.pop("rides")
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TimelineError(f"{path} is no timeline: {error}") from error
    if not any(isinstance(event, Committed) for ride in rides for event in ride.diary.events):
        raise TimelineError(f"{path} holds no ride with a commit")
    return rides, value


def _event(told: dict[str, Any]) -> Event:
    kind = KINDS[told.pop("kind")]
    for name in ("outcomes", "ranks", "probabilities"):
        if name in told:
            told[name] = tuple(told[name])
    return kind(**told)


def draw(rides: Sequence[Ride], *, until_ms: float | None = None) -> Figure:
    """One panel per ride, below each other, on one clock. until_ms: show no more than this."""
    with style.use():
        figure = Figure(figsize=(8.4, 1.0 + 2.5 * len(rides)), layout="constrained")
        axes = figure.subplots(len(rides), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
        for axis, ride in zip(axes, rides, strict=True):
            _panel(axis, ride)
        end_ms = max(axis.dataLim.x1 for axis in axes)
        axes[0].set_xlim(0, min(end_ms, until_ms or end_ms))
        axes[0].set_ylim(bottom=0)
        if until_ms is not None and until_ms < end_ms:
            axes[0].set_ylim(0, max(_reached(ride, until_ms) for ride in rides))
        axes[-1].set_xlabel("time since the session opened (ms)")
        forked = any(len(event.probabilities) > 1 for ride in rides for event in ride.diary.events if _drawn(event))
        figure.legend(
            handles=_legend(forked=forked), loc="outside upper left", ncols=3, columnspacing=1.6, handletextpad=0.5
        )
        return figure


def _legend(*, forked: bool) -> list[Any]:
    of_forks = [
        Line2D([], [], marker="^", linestyle="", color=UNUSED, label="second guess"),
        Line2D([], [], color=SAVED, linewidth=1, **_RING, label="second guess that was right"),
    ]
    return [
        Line2D([], [], marker=".", linestyle="", color=RIGHT, label="guess, right"),
        Line2D([], [], marker=".", linestyle="", color=WRONG, label="guess, wrong"),
        Line2D([], [], marker=".", linestyle="", color=UNUSED, label="guess, never decided"),
        *(of_forks if forked else ()),
        Line2D([], [], color=style.FAINT, linewidth=1, label="draft in flight"),
        Patch(color=RIGHT, alpha=0.3, label="committed, the device's"),
        Patch(color=OWN, alpha=0.35, label="committed, the verifier's own"),
    ]


def _drawn(event: Event) -> TypeGuard[Drafted]:
    return isinstance(event, Drafted)


def _panel(axis: Axes, ride: Ride) -> None:
    events = ride.diary.events
    first = next(event.position for event in events if isinstance(event, Committed))
    began_ms = ride.diary.began_ms or 0.0
    axis.set_title(f"{ride.policy}, RTT {ride.rtt_ms:g} ms")
    axis.set_ylabel("answer (tokens)")
    last_ms = max(event.at_ms for event in events) - began_ms
    _stairs(axis, events, began_ms, first, last_ms)
    _messages(axis, ride, began_ms, first)
    _guesses(axis, events, began_ms, first)


def _stairs(axis: Axes, events: Sequence[Event], began_ms: float, first: int, last_ms: float) -> None:
    """Every commit as a bar from its arrival to the next one's, in two shades: the device's tokens and the others."""
    commits = [event for event in events if isinstance(event, Committed)]
    ends = [commit.at_ms - began_ms for commit in commits[1:]] + [last_ms]
    for commit, end_ms in zip(commits, ends, strict=True):
        start_ms, bottom = commit.at_ms - began_ms, commit.position - first
        width = max(end_ms - start_ms, last_ms / 400)
        axis.bar(start_ms, commit.used, width, bottom, align="edge", color=RIGHT, alpha=0.3, linewidth=0)
        own = commit.tokens - commit.used
        axis.bar(start_ms, own, width, bottom + commit.used, align="edge", color=OWN, alpha=0.35, linewidth=0)
    xs = [commit.at_ms - began_ms for commit in commits] + [last_ms]
    ys = [commit.position + commit.tokens - first for commit in commits]
    axis.step(xs, [*ys, ys[-1]], where="post", color=style.INK, linewidth=1)


def _messages(axis: Axes, ride: Ride, began_ms: float, first: int) -> None:
    """A message leaves the device with its last guess and is with the verifier half a round trip later."""
    lines = []
    rtt_ms = ride.rtt_ms
    for event in ride.diary.events:
        if isinstance(event, Committed) and event.rtt_ms is not None:
            rtt_ms = event.rtt_ms
        if isinstance(event, Sent) and event.tokens:
            at_ms, top = event.at_ms - began_ms, event.position + event.tokens - first - 0.5
            lines.append([(at_ms, top), (at_ms + rtt_ms / 2, top)])
    axis.add_collection(LineCollection(lines, colors=style.FAINT, linewidths=0.9))


def _guesses(axis: Axes, events: Sequence[Event], began_ms: float, first: int) -> None:
    """A mark per guess, coloured by what became of it; branches hang on what they go on from."""

    def place(guess: Guess) -> tuple[float, float]:
        return guess.at_ms - began_ms, guess.position - first + (0.5 if guess.rank == 0 else 0.75)

    drawn = guesses_of(events)
    for beside, marker, size in ((False, "o", 7), (True, "^", 12)):
        some = [guess for guess in drawn if (guess.rank > 0) is beside]
        xs, ys = zip(*map(place, some), strict=True) if some else ((), ())
        colours = [UNUSED if beside and guess.fate is Fate.WRONG else COLOURS[guess.fate] for guess in some]
        axis.scatter(xs, ys, s=size, c=colours, marker=marker, linewidths=0, zorder=3)
    for guess in (guess for guess in drawn if guess.rank > 0 and guess.fate is Fate.RIGHT):
        axis.plot(*place(guess), color=SAVED, zorder=4, **_RING)
    branches = [guess for guess in drawn if guess.on_branch and guess.rank == 0]
    lines = [[place(guess.parent), place(guess)] for guess in branches if guess.parent is not None]
    right = [guess.parent is not None and guess.parent.fate is Fate.RIGHT for guess in branches]
    colours = [SAVED if saved else UNUSED for saved in right]
    widths = [1.1 if saved else 0.5 for saved in right]
    axis.add_collection(LineCollection(lines, colors=colours, linewidths=widths, zorder=2))


def _reached(ride: Ride, until_ms: float) -> float:
    """How far the guesses of the shown part reach, in answer tokens."""
    began_ms = ride.diary.began_ms or 0.0
    first = next(event.position for event in ride.diary.events if isinstance(event, Committed))
    tops = [
        event.position + (1 if isinstance(event, Drafted) else event.tokens) - first
        for event in ride.diary.events
        if event.at_ms - began_ms <= until_ms
    ]
    return max(tops, default=1) + 1
