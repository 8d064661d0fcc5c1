"""What devices do in a fuzz case: plain values, so that a case can be printed, shortened and kept as JSON.

What depends on the run, such as a session's id or how far its log has come, is named relative to it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Send:
    """These bytes as a message."""

    stream: int
    message: bytes


@dataclass(frozen=True)
class Resume:
    """Open by resuming the session that another stream opened. known: tokens more than that stream has heard of."""

    stream: int
    of: int
    known: int


@dataclass(frozen=True)
class Draft:
    """A draft. start, known: relative to the log as the device knows it. right: how many of the target's own words it
    begins with; wrong: ids that follow them. more: a serialised Draft whose other fields it takes."""

    stream: int
    start: int
    known: int
    right: int
    wrong: tuple[int, ...] = ()
    more: bytes = b""


@dataclass(frozen=True)
class HalfClose:
    """No more messages."""

    stream: int


@dataclass(frozen=True)
class Cut:
    """The stream breaks."""

    stream: int


@dataclass(frozen=True)
class Listen:
    """Whether the device reads what is sent to it."""

    stream: int
    listens: bool


@dataclass(frozen=True)
class Wait:
    """Let the verifier work: so many turns of its event loop."""

    turns: int


@dataclass(frozen=True)
class Identify:
    """From now on a stream of this number is opened by this caller; see `callers.NAMES`."""

    stream: int
    caller: str


@dataclass(frozen=True)
class Revoke:
    """The operator takes a principal's key away, and gives it another."""

    caller: str


Operation = Send | Resume | Draft | HalfClose | Cut | Listen | Wait | Identify | Revoke
KINDS: dict[str, type[Operation]] = {
    kind.__name__.lower(): kind for kind in (Send, Resume, Draft, HalfClose, Cut, Listen, Wait, Identify, Revoke)
}
MESSAGES = (Send, Resume, Draft)


def messages(case: Sequence[Operation]) -> int:
    """How many messages a case sends, if no stream ends before it is through."""
    return sum(isinstance(operation, MESSAGES) for operation in case)


def dumps(case: Sequence[Operation]) -> str:
    """A case as JSON, an operation a line."""
    rows = [
        json.dumps(
            {"do": type(operation).__name__.lower()}
            | {key: value.hex() if isinstance(value, bytes) else value for key, value in asdict(operation).items()}
        )
        for operation in case
    ]
    return "[\n" + ",\n".join(rows) + "\n]\n"


def loads(text: str) -> list[Operation]:
    """A case from `dumps`."""

    def value(key: str, said: Any) -> Any:
        if key in ("message", "more"):
            return bytes.fromhex(said)
        return tuple(said) if key == "wrong" else said

    return [KINDS[row.pop("do")](**{key: value(key, said) for key, said in row.items()}) for row in json.loads(text)]
