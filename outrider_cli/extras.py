"""How to get the packages that a part of Outrider needs."""

from __future__ import annotations


def install(*extras: str) -> str:
    """The command that brings extras of pyproject.toml. No index has Outrider: it is installed from its source."""
    return f"pip install '.[{','.join(extras)}]' in a clone of Outrider"
