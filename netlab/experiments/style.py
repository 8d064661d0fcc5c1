"""How figures look: one colour and marker per policy everywhere, labels at the lines, no frame that says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by everyone, and in grey by the markers.
INK, FAINT = "#222222", "#8a8a8a"
LOOKS = {
    "streaming": ("#595959", "o"),
    "sync": ("#e69f00", "s"),
    "pipelined": ("#009e73", "^"),
    "server-led": ("#0072b2", "D"),
    "adaptive": ("#d55e00", "v"),
}
MORE = (("#cc79a7", "P"), ("#56b4e9", "X"), ("#8f6b00", "<"), ("#6a3d9a", ">"), ("#004d40", "h"))
PANEL_INCHES, ALONE_INCHES = (4.2, 3.0), (5.8, 3.5)
LABEL_POINTS = 8.5

SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Source Sans 3", "DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 220,
    "svg.fonttype": "path",  # the same everywhere, whatever fonts a reader has
}


def looks(policies: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each policy; those with a number look like their kind if they are alone with it."""
    kinds = [name.partition(":")[0] for name in policies]
    free = iter(MORE * (len(policies) // len(MORE) + 1))
    taken: dict[str, tuple[str, str]] = {}
    for name, kind in zip(policies, kinds, strict=True):
        own = kind in LOOKS and (name == kind or (kinds.count(kind) == 1))
        taken[name] = LOOKS[kind] if own else next(free)
    return taken


def use() -> Any:
    """A context in which figures are drawn in this style."""
    return mpl.rc_context(SETTINGS)


def panels(count: int, *, shared: bool = True) -> tuple[Figure, list[Axes]]:
    """So many panels side by side, at most three in a row. shared: on one scale."""
    columns = min(3, count)
    rows = -(-count // columns)
    width, height = ALONE_INCHES if count == 1 else PANEL_INCHES
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=shared, sharey=shared)
    axes = [axis for row in grid for axis in row]
    for spare in axes[count:]:
        spare.set_visible(False)
    for above in axes[max(0, count - columns) : count]:
        above.xaxis.set_tick_params(labelbottom=True)
    return figure, axes[:count]


def label_ends(axis: Axes, ends: dict[str, tuple[float, float]], colours: dict[str, str]) -> None:
    """Write each line's name at its right end, moved apart where they would overlap.

    ends: name to the line's last point, in data. Call it once the limits stand.
    """
    points = axis.figure.dpi / 72
    gap = (LABEL_POINTS + 2.5) * points
    wanted = sorted((axis.transData.transform(end)[1], name) for name, end in ends.items())
    for height, (natural, name) in zip(spread([height for height, _ in wanted], gap), wanted, strict=True):
        axis.annotate(
            name,
            ends[name],
            xytext=(6, (height - natural) / points),
            textcoords="offset points",
            va="center",
            fontsize=LABEL_POINTS,
            fontweight="bold",
            color=colours[name],
            annotation_clip=False,
        )


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places at least `gap` apart, as close to the wanted ones (rising) as a pile of them can lie around its middle."""
    piles: list[list[float]] = []  # each lies around the mean of what its members wanted
    for place in wanted:
        piles.append([place])
        while len(piles) > 1 and _top(piles[-2], gap) + gap > _bottom(piles[-1], gap):
            piles[-2:] = [piles[-2] + piles[-1]]
    return [_bottom(pile, gap) + rank * gap for pile in piles for rank in range(len(pile))]


def _bottom(pile: list[float], gap: float) -> float:
    return sum(pile) / len(pile) - gap * (len(pile) - 1) / 2


def _top(pile: list[float], gap: float) -> float:
    return _bottom(pile, gap) + gap * (len(pile) - 1)
