"""Conversations that a model has read and put aside: when one goes on, it need not be read again.

A chat application asks for a title or for suggestions between two turns of a chat, and people have several chats. A
model holds one sequence; what it held before is copied here, keys and values with the tokens they belong to, and is
copied back when a sequence begins as one of these did. What was used longest ago goes first when there is too much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edge_client.drafters.settings import DeviceSettings
from outrider_models.memory_check import available_bytes

LEAST_TOKENS = 96  # shorter ones are read again as fast; no line of guesses is as long
_LEAST_GAIN_TOKENS = 16
MOST_CONVERSATIONS_BYTES = 256 << 20


@dataclass(frozen=True)
class Kept:
    """What a runtime evaluated for these tokens, as only the runtime can read it."""

    tokens: Sequence[int]
    state: Any
    size_bytes: int


class Conversations:
    """At most so many bytes of them."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._kept: list[Kept] = []  # latest last

    def put(self, kept: Kept) -> None:
        """Keep one; others that it begins with are worth nothing beside it. One that is too large is not kept."""
        if kept.size_bytes > self.most_bytes:
            return
        self._kept = [one for one in self._kept if one.tokens != kept.tokens[: len(one.tokens)]]
        self._kept.append(kept)
        while sum(one.size_bytes for one in self._kept) > self.most_bytes:
            del self._kept[0]

    def has(self, tokens: Sequence[int]) -> bool:
        """Whether one begins so."""
        return any(one.tokens[: len(tokens)] == tokens for one in self._kept)

    def find(self, before: Sequence[int], tokens: Sequence[int], known: int) -> Kept | None:
        """The one that shares most with the sequence `before` + `tokens`; None unless it is `before`, all of it, and a
        good deal more of `tokens` than the first `known`."""
        best, most = None, known + _LEAST_GAIN_TOKENS - 1
        if len(tokens) <= most:
            return None
        for one in reversed(self._kept):
            if one.tokens[: len(before)] == before:
                shared = common(one.tokens[len(before) : len(before) + len(tokens)], tokens)
                if shared > most:
                    best, most = one, shared
        if best is not None:
            self._kept.remove(best)
            self._kept.append(best)
        return best

    def forget(self, kept: Kept) -> None:
        """It turned out to be of no use."""
        self._kept.remove(kept)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))


def conversations_bytes(settings: DeviceSettings, model_bytes: int) -> int:
    """Memory for conversations put aside: a quarter of what a model leaves of what is free or allowed, at most 256 MiB.

    model_bytes: weights and key-value cache.
    """
    if not settings.keeps_conversations:
        return 0
    known = [found for found in (available_bytes(), settings.memory_limit_bytes) if found is not None]
    return max(0, min([MOST_CONVERSATIONS_BYTES, *((found - model_bytes) // 4 for found in known)]))
