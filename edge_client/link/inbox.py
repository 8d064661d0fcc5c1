"""What a session's inbox may hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from outrider.v1 import verifier_pb2 as pb

from edge_client.errors import SessionError


@dataclass(frozen=True)
class Heard:
    """A message of the verifier's. at_ms: the device's clock when it came in, which may be well before it is looked at,
    for a drafter cannot be interrupted within a token. rtt_ms: the latest round trip as then known."""

    response: pb.GenerateResponse
    at_ms: float
    rtt_ms: float | None


@dataclass(frozen=True)
class Reconnected:
    """The stream broke and stands again: what was sent may have been lost."""


@dataclass(frozen=True)
class PromptKnown:
    """All token ids of the prompt have come, after an Opened that had none."""

    ids: list[int]


@dataclass(frozen=True)
class LinkChanged:
    """waiting: nothing has been heard for a while, though it was asked for; or else something has been heard again."""

    waiting: bool


@dataclass(frozen=True)
class Failed:
    """The session cannot go on."""

    error: SessionError


@dataclass(frozen=True)
class Callback:
    """Something that another thread wants done on the session's own."""

    run: Callable[[], None]


@dataclass(frozen=True)
class Stop:
    """Drafting ends. learn: whether the drafter is to learn from the log as it stands."""

    learn: bool = False


Message = Heard | Reconnected | PromptKnown | LinkChanged | Failed | Callback
