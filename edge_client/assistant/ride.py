"""What a chunk tells of its ride: whose word each token was first, live figures, the timeline.

Read from the diary that the session's thread writes, which only grows: what is new is what lies past the last look.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from edge_client.types import StreamChunk
from speculation.pace.observed import Committed, Diary, Sent


@dataclass
class RideView:
    """Follows one answer's diary."""

    diary: Diary = field(default_factory=Diary)
    began_ms: float = field(default_factory=lambda: time.perf_counter() * 1e3)
    _seen: int = 0
    _first_position: int | None = None
    _first_commit_ms: float = 0.0
    _last_commit_ms: float = 0.0
    _tokens_since: int = 0  # the first commit
    _right: int = 0
    _decided: int = 0
    _rtt_ms: float | None = None
    _lookahead_tokens: int | None = None
    _in_flight: list[int] = field(default_factory=list)  # where each block ends

    def news(self, chunk: StreamChunk) -> dict[str, Any]:
        """The object `outrider` of a chunk."""
        events = self._events()  # also what the live figures are made of
        return {"link": chunk.link.value, "tokens": _tokens(chunk), "live": self._live(), "events": events}

    def _events(self) -> list[dict[str, Any]]:
        new = self.diary.events[self._seen :]
        if self._first_position is None:
            firsts = [event.position for event in new if isinstance(event, Committed)]
            if not firsts:
                return []  # nobody knows yet where the answer begins
            self._first_position = firsts[0]
        self._seen += len(new)
        told = []
        for event in new:
            if isinstance(event, Sent):
                told.append(self._sent(event))
            elif isinstance(event, Committed):
                told.append(self._committed(event))
        return told

    def _head(self, kind: str, event: Sent | Committed) -> dict[str, Any]:
        return {
            "kind": kind,
            "at_ms": round(event.at_ms - self.began_ms, 2),
            "position": event.position - (self._first_position or 0),
            "tokens": event.tokens,
        }

    def _sent(self, event: Sent) -> dict[str, Any]:
        if event.tokens:
            self._in_flight.append(event.position + event.tokens)
            self._lookahead_tokens = event.depth
        return self._head("sent", event)

    def _committed(self, event: Committed) -> dict[str, Any]:
        self._decided += len(event.outcomes)
        self._right += sum(event.outcomes)
        self._rtt_ms = event.rtt_ms
        if self._first_commit_ms:
            self._tokens_since += event.tokens
        else:
            self._first_commit_ms = event.at_ms
        self._last_commit_ms = event.at_ms
        length = event.position + event.tokens
        wrong = -1 in event.ranks  # then whatever else was sent is void
        self._in_flight = [] if wrong else [end for end in self._in_flight if end > length]
        return self._head("committed", event) | {
            "used": event.used,
            "rtt_ms": _rounded(event.rtt_ms),
            "forward_ms": round(event.forward_ms, 2),
            "queue_ms": round(event.queue_ms, 2),
        }

    def _live(self) -> dict[str, Any]:
        decoding_s = (self._last_commit_ms - self._first_commit_ms) / 1e3
        return {
            "at_ms": round(time.perf_counter() * 1e3 - self.began_ms, 2),
            "rtt_ms": _rounded(self._rtt_ms),
            "lookahead_tokens": self._lookahead_tokens,
            "acceptance": round(self._right / self._decided, 4) if self._decided else None,
            "tokens_per_s": round(self._tokens_since / decoding_s, 2) if decoding_s else None,
            "in_flight_blocks": len(self._in_flight),
        }


def _tokens(chunk: StreamChunk) -> list[dict[str, Any]]:
    writers = ["offline" if chunk.offline else writer.value for writer in chunk.writers]
    return [
        {"id": token, "text": text, "writer": writer}
        for token, text, writer in zip(chunk.token_ids, chunk.texts, writers, strict=True)
    ]


def _rounded(value_ms: float | None) -> float | None:
    return None if value_ms is None else round(value_ms, 2)
