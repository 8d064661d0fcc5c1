"""Figures as files."""

from __future__ import annotations

import io
import re
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from netlab.experiments import style


def save(figure: Figure, folder: Path, name: str) -> None:
    """As PNG and SVG. Raises OSError."""
    with style.use():
        figure.savefig(folder / f"{name}.png")
    (folder / f"{name}.svg").write_text(svg(figure, name), encoding="utf-8")


def svg(figure: Figure, name: str) -> str:
    """As SVG, the same for the same figure. name: keeps the ids of several figures on one page apart."""
    text = io.StringIO()
    with style.use(), mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text.getvalue())
