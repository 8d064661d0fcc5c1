"""How an answer fares, in a line: what a person wants to know while it comes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from edge_client.assistant.ride import RideView
from edge_client.terminal import TOLD
from edge_client.types import LinkState, StreamChunk

_WORTH_COUNTING_S = 1.0


@dataclass
class Progress:
    """Hears the chunks on one thread, tells on another. clock: in seconds."""

    view: RideView = field(default_factory=RideView)
    clock: Callable[[], float] = time.monotonic
    link: LinkState = LinkState.LIVE  # until the contrary is told, which takes a second
    tokens: int = 0
    _told: str = ""

    def __post_init__(self) -> None:
        """From now on."""
        self._since_s = self._began_s = self.clock()
        self._first_s = self._began_s

    def heard(self, chunk: StreamChunk) -> None:
        """The answer's next chunk."""
        now_s = self.clock()
        if chunk.link is not self.link:
            self.link, self._since_s = chunk.link, now_s
        if chunk.token_ids and not self.tokens:
            self._first_s = now_s
        self.tokens += len(chunk.token_ids)
        live = self.view.news(chunk)["live"]
        told = []
        if now_s > self._first_s and self.tokens > 1:
            told.append(f"{(self.tokens - 1) / (now_s - self._first_s):.0f} tokens/s")
        if self.link is LinkState.LIVE:
            if live["acceptance"] is not None:
                told.append(f"{live['acceptance']:.0%} acceptance rate")
            if live["lookahead_tokens"]:
                told.append(f"{live['lookahead_tokens']} tokens ahead")
            if live["rtt_ms"] is not None:
                told.append(f"round trip {live['rtt_ms']:.0f} ms")
        self._told = ", ".join(told)

    def __call__(self) -> str:
        """The line, as of now."""
        since_s = self.clock() - self._since_s
        lasting = f", {since_s:.0f} s" if since_s >= _WORTH_COUNTING_S else ""
        if self.link in (LinkState.CONNECTING, LinkState.WAITING):
            return f"{TOLD[self.link]}{lasting}  (Ctrl-C stops)"
        if not self.tokens:
            return f"waiting for the first word{lasting}  (Ctrl-C stops)"
        alone = "the device alone: " if self.link is LinkState.OFFLINE else ""
        return ", ".join(filter(None, (f"{alone}{self.tokens} tokens", self._told)))
