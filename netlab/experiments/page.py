"""An experiment as one page of HTML that needs nothing else: no network, no script, no fonts.

Whatever comes from results is escaped; the figures are drawn here and go in as they are.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from netlab.experiments import figures, files, timeline
from netlab.experiments.results import Results, Row, Spread
from netlab.experiments.timeline import Ride

CONDITIONS = {
    "profile": "network",
    "rtt_ms": "RTT, ms",
    "jitter_ms": "jitter, ms",
    "pair": "pair",
    "draft_ms": "draft, ms",
    "step_ms": "step, ms",
    "devices": "devices",
}
STYLE = """
:root { color-scheme: light; --ink: #222; --faint: #6b6b6b; --line: #e3e3e3; --best: #0b6e4f; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 72rem; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem; }
p.lead { color: var(--faint); margin: 0; }
figure { margin: 0 0 2rem; }
figure svg { display: block; max-width: 100%; height: auto; }
figcaption { color: var(--faint); font-size: .88rem; max-width: 46rem; margin-top: .3rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .26rem .5rem; text-align: right; white-space: nowrap; }
th { font-weight: 600; border-bottom: 1.5px solid var(--ink); vertical-align: bottom; }
th.text, td.text { text-align: left; }
tbody tr.first td { border-top: 1px solid var(--line); }
td.best { font-weight: 700; color: var(--best); }
td.no, p.no { color: #b00020; font-weight: 700; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.2rem; font-size: .88rem; margin: 0; }
dt { color: var(--faint); }
dd { margin: 0; overflow-wrap: anywhere; }
@media print { body { max-width: none; padding: 0; } figure, table { break-inside: avoid; } }
"""


def page(results: Results, rides: Sequence[Ride] = ()) -> str:
    """The whole page. rides: for a timeline."""
    title = html.escape(results.title)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">""",
        f"<title>{title}</title><style>{STYLE}</style></head><body>",
        f"<header><h1>{title}</h1><p class=lead>{_lead(results)}</p></header>",
        *_warnings(results),
        "<main><h2>Figures</h2>",
        *(_figure(plot.name, plot.caption, files.svg(plot.figure, plot.name)) for plot in figures.draw(results)),
        *(_timeline(rides) if rides else ()),
        "<h2>Figures in numbers</h2>",
        "<p class=lead>Medians over answers and seeds. The best time per token of each condition is in bold.</p>",
        f"<div class=scroll>{_table(results)}</div>",
        "<h2>Where this comes from</h2>",
        _origin(results.origin),
        "</main></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _lead(results: Results) -> str:
    answers, policies = len(results.rows), ", ".join(results.policies)
    return html.escape(f"{answers:,} answers under {policies}.")


def _warnings(results: Results) -> list[str]:
    told = []
    if not results.complete:
        told.append("The sweep is not finished: this page shows the cells that are.")
    if not all(row["same_words"] for row in results.rows):
        told.append("Words differ between policies: this is a bug, and no figure below can be trusted.")
    if len({row.get("commit") for row in results.rows}) > 1:
        told.append("The rows come from more than one commit.")
    return [f'<p class="no">{html.escape(each)}</p>' for each in told]


def _figure(name: str, caption: str, svg: str) -> str:
    """The SVG without what stands before its element: an XML declaration has no place in HTML."""
    body = svg[svg.index("<svg") :]
    label = html.escape(caption, quote=True)
    body = body.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return (
        f'<figure id="{html.escape(name, quote=True)}">{body}<figcaption>{html.escape(caption)}</figcaption></figure>'
    )


def _timeline(rides: Sequence[Ride]) -> list[str]:
    caption = (
        "One answer as it happened. Dots are guesses when they were drawn, grey lines drafts on their way to the "
        "verifier, the stairs the log as the device knows it."
    )
    return [_figure("timeline", caption, files.svg(timeline.draw(rides), "timeline"))]


def _table(results: Results) -> str:
    shown = [name for name in CONDITIONS if len(results.values(name)) > 1]
    if "profile" in shown:  # which has its own round trip and jitter
        shown = [name for name in shown if name not in ("rtt_ms", "jitter_ms")]
    shown = shown or ["rtt_ms"]
    groups: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in sorted(results.rows, key=lambda row: (row.get("step_ms") or 0, row["rtt_ms"])):
        key = tuple(row.get(name) for name in shown)
        groups.setdefault(key, {}).setdefault(row["policy"], []).append(row)
    head = "".join(_cell("th", CONDITIONS[name], text=name in ("profile", "pair")) for name in shown)
    head += _cell("th", "policy", text=True)
    for name in (
        "ms per token",
        "middle half",
        "of streaming",
        "95th pct",
        "forwards",
        "acceptance",
        "B/token up",
        "same",
    ):
        head += _cell("th", name)
    body = []
    for key in groups if "profile" in shown else sorted(groups, key=_order):
        policies = groups[key]
        medians = {name: float(np.median([r["ms_per_token"] for r in rows])) for name, rows in policies.items()}
        best = min(medians.values())
        for rank, (_, rows) in enumerate(policies.items()):
            first = ' class="first"' if rank == 0 else ""
            conditions = "".join(
                _cell("td", _short(value) if rank == 0 else "", text=isinstance(value, str)) for value in key
            )
            body.append(f"<tr{first}>{conditions}{_figures(rows, best)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _figures(rows: Sequence[Row], best: float) -> str:
    per_token = Spread.of(row["ms_per_token"] for row in rows)
    ratios = [row["total_over_streaming"] for row in rows]
    candidates = dict.fromkeys(row["candidate"] for row in rows)
    policy = rows[0]["policy"]
    names = [name.removeprefix(f"{policy}:") for name in candidates if name != policy]
    label = policy + (f" ({', '.join(names)})" if names else "")
    same = all(row["same_words"] for row in rows)
    cells = [
        _cell("td", label, text=True),
        _cell("td", f"{per_token.median:.2f}", best=per_token.median == best),
        _cell("td", f"{per_token.low:.1f} to {per_token.high:.1f}" if per_token.count > 1 else ""),
        _cell("td", f"{np.median(ratios):.3f}"),
        _cell("td", f"{np.percentile(ratios, 95):.3f}" if len(ratios) > 1 else ""),
        _cell("td", f"{np.median([row['target_forwards_per_token'] for row in rows]):.3f}"),
        _cell("td", _share(rows)),
        _cell("td", _bytes(rows)),
        _cell("td", "yes" if same else "NO", wrong=not same),
    ]
    return "".join(cells)


def _share(rows: Sequence[Row]) -> str:
    """Acceptance rate: accepted / checked; from JSON, as it stands there."""
    if "verified_tokens" not in rows[0]:
        return "" if rows[0].get("acceptance") is None else f"{rows[0]['acceptance']:.2f}"
    verified = sum(row["verified_tokens"] for row in rows)
    return f"{sum(row['accepted_tokens'] for row in rows) / verified:.2f}" if verified else ""


def _bytes(rows: Sequence[Row]) -> str:
    if "uplink_bytes" not in rows[0]:
        return f"{rows[0].get('uplink_bytes_per_token') or 0:.0f}"
    return f"{sum(row['uplink_bytes'] for row in rows) / sum(row['tokens'] for row in rows):.0f}"


def _cell(tag: str, value: str, *, text: bool = False, best: bool = False, wrong: bool = False) -> str:
    names = [name for name, wanted in (("text", text), ("best", best), ("no", wrong)) if wanted]
    mark = f' class="{" ".join(names)}"' if names else ""
    return f"<{tag}{mark}>{html.escape(value)}</{tag}>"


def _short(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, int | float) else str(value)


def _order(key: tuple[Any, ...]) -> tuple[tuple[bool, Any], ...]:
    return tuple((isinstance(each, str), each if each is not None else -1) for each in key)


def _origin(origin: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in origin)
    return f"<dl>{rows}</dl>"
