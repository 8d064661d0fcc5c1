"""What an experiment varies about the network: a plain round trip, or a named profile."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from netlab import profiles
from netlab.experiments.grid import Cell
from netlab.link_settings import LinkSettings

APART_MS = 7919.0  # so far apart in traces and outages do answers begin


@dataclass(frozen=True)
class Condition:
    """One network. rtt_ms: the least round trip. profile: its name, None for a plain round trip."""

    rtt_ms: float
    profile: str | None
    settings: LinkSettings

    def for_answer(self, index: int) -> LinkSettings:
        """Every answer begins at another place of traces and outages, the same place for every policy."""
        return replace(self.settings, offset_ms=index * APART_MS)

    def __str__(self) -> str:
        return f"{self.rtt_ms:g} ms" if self.profile is None else self.profile


def of_cell(cell: Cell) -> Condition:
    """The network of a grid's cell. Raises ValueError for a profile that does not exist."""
    if cell.profile is not None:
        return of_profiles([cell.profile])[0]
    assert cell.rtt_ms is not None
    return Condition(cell.rtt_ms, None, LinkSettings.of_rtt(cell.rtt_ms, jitter_ms=cell.jitter_ms or 0.0))


def of_rtts(rtts_ms: Iterable[float]) -> list[Condition]:
    """Plain round trips. Raises ValueError for one that no link has."""
    return [Condition(rtt_ms, None, LinkSettings.of_rtt(rtt_ms)) for rtt_ms in rtts_ms]


def of_profiles(names: Iterable[str]) -> list[Condition]:
    """Named profiles, or files that describe one. Raises ValueError for one that does not exist."""
    found = [profiles.find(name) for name in names]
    return [Condition(p.settings.rtt_ms, p.name, p.settings) for p in found]
