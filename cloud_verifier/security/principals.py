"""Principals: who asks, and how much they may have."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Quota:
    """Limits of one principal; None limits nothing.

    max_sessions: sessions at once, those that wait for their device to come back included. max_queued: of them waiting
    for a place. max_prompt_tokens: of one prompt. tokens_per_minute: read and written.
    """

    max_sessions: int | None = None
    max_queued: int | None = None
    max_prompt_tokens: int | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True)
class Principal:
    """Whose session it is. Sessions of one name share its quota, and only that name resumes them.

    credential: what showed it, as `keys.KeyStore.holders` names it; empty if nothing had to.
    """

    name: str
    quota: Quota
    credential: str = ""


ANONYMOUS = Principal("anonymous", Quota())

caller: ContextVar[Principal] = ContextVar("caller", default=ANONYMOUS)
"""Whose call is being served; set by `Authentication`."""
