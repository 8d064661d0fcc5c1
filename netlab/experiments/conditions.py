"""What an experiment varies about the network: a plain round trip, or a named profile."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from netlab.link_settings import LinkSettings


@dataclass(frozen=True)
class Condition:
    """One network. rtt_ms: the least round trip. profile: its name, None for a plain round trip."""

    rtt_ms: float
    profile: str | None
    settings: LinkSettings

    def __str__(self) -> str:
        return f"{self.rtt_ms:g} ms" if self.profile is None else self.profile


def of_rtts(rtts_ms: Iterable[float]) -> list[Condition]:
    """Plain round trips. Raises ValueError for one that no link has."""
    return [Condition(rtt_ms, None, LinkSettings.of_rtt(rtt_ms)) for rtt_ms in rtts_ms]


def of_profiles(names: Iterable[str]) -> list[Condition]:
    """Named profiles, or files that describe one. Raises ValueError for one that does not exist."""
    from netlab import profiles

    found = [profiles.find(name) for name in names]
    return [Condition(p.settings.delay_up_ms + p.settings.delay_down_ms, p.name, p.settings) for p in found]
