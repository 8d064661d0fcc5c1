"""The device side of Outrider: drafters, the riding loop and the Python API. Never imports torch; `export` does.

Applications import the API from `outrider`; this is where its names come from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_client.client import AsyncEdgeClient, EdgeClient
    from edge_client.drafters.errors import DrafterError
    from edge_client.drafters.settings import DeviceSettings
    from edge_client.errors import SessionError
    from edge_client.link.channel import LinkSettings
    from edge_client.link.security import Security
    from edge_client.types import (
        LinkState,
        OfflineAnswers,
        RequestMetrics,
        RequestOutput,
        RideSettings,
        StreamChunk,
        TokenLogprob,
    )
    from speculation.pace.base import Objective
    from speculation.sampling import SamplingParams

_HOMES = {
    "AsyncEdgeClient": "edge_client.client",
    "DeviceSettings": "edge_client.drafters.settings",
    "DrafterError": "edge_client.drafters.errors",
    "EdgeClient": "edge_client.client",
    "LinkSettings": "edge_client.link.channel",
    "LinkState": "edge_client.types",
    "Objective": "speculation.pace.base",
    "OfflineAnswers": "edge_client.types",
    "RequestMetrics": "edge_client.types",
    "RequestOutput": "edge_client.types",
    "RideSettings": "edge_client.types",
    "SamplingParams": "speculation.sampling",
    "Security": "edge_client.link.security",
    "SessionError": "edge_client.errors",
    "StreamChunk": "edge_client.types",
    "TokenLogprob": "edge_client.types",
}
__all__ = [
    "AsyncEdgeClient",
    "DeviceSettings",
    "DrafterError",
    "EdgeClient",
    "LinkSettings",
    "LinkState",
    "Objective",
    "OfflineAnswers",
    "RequestMetrics",
    "RequestOutput",
    "RideSettings",
    "SamplingParams",
    "Security",
    "SessionError",
    "StreamChunk",
    "TokenLogprob",
]


def __getattr__(name: str) -> Any:
    """Import on first use: the command line must answer --help before gRPC is loaded."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
