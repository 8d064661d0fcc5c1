"""The figures of a sweep. Lines are medians over answers and seeds, bands the middle half of them.

Each function returns None where the results do not vary what the figure is about.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from netlab.experiments import style
from netlab.experiments.results import Results, Row, Spread

FACETS = {  # what panels differ by, and how a title says it
    "pair": "{}",
    "draft_ms": "draft {:g} ms",
    "step_ms": "step {:g} ms",
    "devices": "{} devices",
    "jitter_ms": "jitter {:g} ms",
}
MOST_PANELS = 12
Medians = dict[str, list[tuple[float, float]]]  # of each policy, over what lies on the x axis
RTT = ("rtt_ms", "round-trip time (ms)")
DEVICES = ("devices", "devices sharing the verifier")


@dataclass(frozen=True)
class Plot:
    """A figure with its file name and what a caption says of it."""

    name: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Measure:
    """A number of every row, and how an axis names it."""

    column: str
    label: str
    of: Callable[[Row], float | None]

    @classmethod
    def plain(cls, column: str, label: str) -> Measure:
        """A column as it is."""
        return cls(column, label, lambda row: row.get(column))


MS_PER_TOKEN = Measure.plain("ms_per_token", "time per token (ms)")
FORWARDS = Measure.plain("target_forwards_per_token", "target forwards per token")
ENGINE_MS = Measure.plain("verifier_ms_per_token", "engine time per token (ms)")
BYTES_UP = Measure(
    "uplink_bytes_per_token",
    "bytes up per token",
    lambda row: row["uplink_bytes"] / row["tokens"] if "uplink_bytes" in row else row.get("uplink_bytes_per_token"),
)
LOOKAHEAD = Measure.plain("lookahead_tokens", "lookahead when sending (tokens)")
SPEED_UP = Measure(
    "total_over_streaming", "speed-up over streaming", lambda row: 1 / ratio if (ratio := _ratio(row)) else None
)


def draw(results: Results) -> list[Plot]:
    """Every figure that these results can fill."""
    makers = (time_per_token, speed_up, forwards, lookahead, gain_and_price, capacity, networks)
    with style.use():
        return [plot for make in makers if (plot := make(results)) is not None]


def time_per_token(results: Results) -> Plot | None:
    """Time per token over round-trip time."""
    return _over_rtt(results, MS_PER_TOKEN, "time-per-token", "Time per token over round-trip time, by policy.")


def forwards(results: Results) -> Plot | None:
    """Target forwards per token over round-trip time."""
    caption = "Target forwards per token over round-trip time: what the answer costs the verifier."
    return _over_rtt(results, FORWARDS, "target-forwards", caption)


def lookahead(results: Results) -> Plot | None:
    """How far ahead devices ride, over round-trip time."""
    caption = "How far past the known log a device's messages reach, over round-trip time."
    return _over_rtt(results, LOOKAHEAD, "lookahead", caption)


def speed_up(results: Results) -> Plot | None:
    """Speed-up over streaming, with the round trips from which on a policy is slower."""
    caption = (
        "Speed-up over streaming from the same server, answer by answer. Below the line a policy is slower than "
        "streaming; ticks on it mark the round-trip time from which on its median is."
    )
    return _over_rtt(
        results.where(lambda row: row["policy"] != "streaming"), SPEED_UP, "speed-up", caption, finish=_cross
    )


def _cross(axis: Axes, lines: Medians, colours: dict[str, str]) -> None:
    """Mark where a line falls through 1."""
    axis.axhline(1, color=style.INK, linewidth=1, zorder=1.5)
    found = [(x, name) for name, points in lines.items() if (x := crossover(points)) is not None]
    for rank, (x, name) in enumerate(sorted(found)):
        axis.plot([x], [1], marker="|", markersize=11, markeredgewidth=2, color=colours[name], zorder=4)
        axis.annotate(
            f"{name} loses from {x:.0f} ms",
            (x, 1),
            xytext=(0.97, 0.97 - 0.075 * rank),
            textcoords="axes fraction",
            fontsize=7.5,
            color=colours[name],
            ha="right",
            va="top",
        )


def crossover(points: Sequence[tuple[float, float]]) -> float | None:
    """Where a line through these points, x rising, falls through 1 for good; None if it does not."""
    found = None
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if y0 >= 1 > y1:
            found = x0 + (x1 - x0) * (y0 - 1) / (y0 - y1)
        elif y1 >= 1:
            found = None
    return found


def gain_and_price(results: Results) -> Plot | None:
    """What drafting gains, and what it takes of verifier and uplink, side by side."""
    drafting = results.where(lambda row: row.get("profile") is None and row["policy"] != "streaming")
    if len(drafting.values("rtt_ms")) < 2:
        return None
    title, group = next(iter(_groups(drafting, tuple(FACETS)).items()))
    measures = [each for each in (SPEED_UP, FORWARDS, BYTES_UP) if _lines(group, each, "rtt_ms")]
    figure, axes = style.panels(len(measures), shared=False)
    drawn = [(axis, _draw_lines(axis, group, each, RTT)) for axis, each in zip(axes, measures, strict=True)]
    _label(figure, drawn, _colours(drafting))
    note = f" At {title}." if title else ""
    caption = f"Speed-up over streaming, and what it costs: target forwards and bytes up per token.{note}"
    return Plot("gain-and-price", caption, figure)


def capacity(results: Results) -> Plot | None:
    """What sharing a verifier costs each device, and saves the verifier."""
    plain = results.where(lambda row: row.get("profile") is None)
    if len(plain.values("devices")) < 2:
        return None
    measures = [MS_PER_TOKEN, FORWARDS, ENGINE_MS]
    groups = _groups(plain, ("rtt_ms", "pair", "draft_ms", "step_ms", "jitter_ms"))
    title, group = next(iter(groups.items()))
    measures = [each for each in measures if _lines(group, each, "devices")]
    figure, axes = style.panels(len(measures), shared=False)
    drawn = [(axis, _draw_lines(axis, group, each, DEVICES)) for axis, each in zip(axes, measures, strict=True)]
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_xticks(group.values("devices"), [str(devices) for devices in group.values("devices")])
        axis.minorticks_off()
    for axis in (axis for axis, each in zip(axes, measures, strict=True) if each is ENGINE_MS):
        axis.set_yscale("log")
    _label(figure, drawn, _colours(group))
    note = f" At {title}." if title else ""
    return Plot("capacity", f"Time and work per token over the devices that share one verifier.{note}", figure)


def networks(results: Results) -> Plot | None:
    """Time per token on named networks."""
    named = results.where(lambda row: row.get("profile") is not None)
    if not named.rows:
        return None
    rtts = {row["profile"]: row["rtt_ms"] for row in named.rows}
    profiles = sorted(rtts, key=lambda name: (rtts[name], name))
    policies = named.policies
    looks = style.looks(policies)
    figure = Figure(figsize=(6.4, 0.9 + 0.46 * len(profiles)), layout="constrained")
    axis = figure.subplots()
    axis.grid(axis="x")
    axis.grid(visible=False, axis="y")
    height = 0.62 / max(1, len(policies) - 1)
    for rank, policy in enumerate(policies):
        colour, marker = looks[policy]
        for place, profile in enumerate(profiles):
            values = [r["ms_per_token"] for r in named.rows if (r["policy"], r["profile"]) == (policy, profile)]
            if values:
                spread = Spread.of(values)
                y = place - 0.31 + rank * height
                axis.plot([spread.low, spread.high], [y, y], color=colour, linewidth=2.4, alpha=0.45)
                axis.plot([spread.median], [y], marker, color=colour, label=policy if place == 0 else None)
    axis.set_yticks(range(len(profiles)), [f"{name}\n{rtts[name]:.0f} ms" for name in profiles])
    axis.set_ylim(len(profiles) - 0.5, -0.5)
    axis.set_xlim(left=0)
    axis.set_xlabel(MS_PER_TOKEN.label)
    figure.legend(loc="outside upper left", ncols=len(policies), columnspacing=1.2, handletextpad=0.2)
    caption = "Time per token on named networks, with their least round trip; bars span the middle half of the answers."
    return Plot("networks", caption, figure)


# -- panels of lines ---------------------------------------------------------------------------------------------------


def _over_rtt(
    results: Results,
    measure: Measure,
    name: str,
    caption: str,
    finish: Callable[[Axes, Medians, dict[str, str]], object] | None = None,
) -> Plot | None:
    plain = results.where(lambda row: row.get("profile") is None and measure.of(row) is not None)
    if len(plain.values("rtt_ms")) < 2:
        return None
    groups = list(_groups(plain, tuple(FACETS)).items())
    figure, axes = style.panels(min(MOST_PANELS, len(groups)))
    drawn = []
    for axis, (title, group) in zip(axes, groups, strict=False):
        axis.set_title(title)
        drawn.append((axis, _draw_lines(axis, group, measure, RTT)))
        axis.label_outer(remove_inner_ticks=False)
    _label(figure, drawn, _colours(results))
    if finish is not None:
        for axis, lines in drawn:
            finish(axis, lines, _colours(results))
    if len(groups) > MOST_PANELS:
        caption += f" The first {MOST_PANELS} of {len(groups)} conditions are shown."
    return Plot(name, caption, figure)


def _groups(results: Results, columns: Sequence[str]) -> dict[str, Results]:
    """The rows by what of these columns varies, with a title each."""
    varying = [column for column in columns if len(results.values(column)) > 1]
    keys = sorted({tuple(row.get(column) for column in varying) for row in results.rows}, key=str)
    keys.sort(key=lambda key: tuple((isinstance(one, str), one) for one in key))
    forms = FACETS | {"rtt_ms": "RTT {:g} ms"}
    return {
        ", ".join(forms[column].format(one) for column, one in zip(varying, key, strict=True)): results.where(
            lambda row, key=key: tuple(row.get(column) for column in varying) == key  # type: ignore[misc]
        )
        for key in keys
    }


def _lines(results: Results, measure: Measure, column: str) -> dict[str, list[tuple[float, Spread]]]:
    """Each policy's spread over a column's values."""
    lines: dict[str, list[tuple[float, Spread]]] = {}
    for policy, x in itertools.product(results.policies, results.values(column)):
        found = [
            value
            for row in results.rows
            if row["policy"] == policy and row[column] == x and (value := measure.of(row)) is not None
        ]
        if found:
            lines.setdefault(policy, []).append((x, Spread.of(found)))
    return lines


def _draw_lines(axis: Axes, results: Results, measure: Measure, x_axis: tuple[str, str]) -> Medians:
    looks, lines = style.looks(results.policies), _lines(results, measure, x_axis[0])
    for policy, points in lines.items():
        colour, marker = looks[policy]
        xs, lows, highs = [x for x, _ in points], [s.low for _, s in points], [s.high for _, s in points]
        axis.fill_between(xs, lows, highs, color=colour, alpha=0.14, linewidth=0)
        axis.plot(xs, [s.median for _, s in points], color=colour, marker=marker, clip_on=False, zorder=3)
    axis.set_xlabel(x_axis[1])
    axis.set_ylabel(measure.label)
    axis.set_xticks(sorted({x for points in lines.values() for x, _ in points}))
    return {policy: [(x, spread.median) for x, spread in points] for policy, points in lines.items()}


def _label(figure: Figure, drawn: Sequence[tuple[Axes, Medians]], colours: dict[str, str]) -> None:
    """Names at the lines' ends, once the limits stand: every linear axis begins at 0."""
    for axis in (axis for axis, _ in drawn if axis.get_yscale() == "linear"):
        axis.set_ylim(0, max(axis.get_ylim()[1], axis.dataLim.y1 * 1.03))
    figure.draw_without_rendering()
    for axis, lines in drawn:
        style.label_ends(axis, {name: points[-1] for name, points in lines.items()}, colours)


def _colours(results: Results) -> dict[str, str]:
    return {name: colour for name, (colour, _) in style.looks(results.policies).items()}


def _ratio(row: Row) -> Any:
    return row.get("total_over_streaming")
