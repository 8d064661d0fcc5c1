"""The device side of Outrider: drafters, the riding loop and the Python API. Never imports torch.

from edge_client import EdgeClient, SamplingParams

with EdgeClient("127.0.0.1:50051", drafter="drafter.gguf") as client:
    print(client.generate("Hello", SamplingParams(temperature=0.8, max_tokens=64)).text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_client.client import AsyncEdgeClient, EdgeClient
    from edge_client.errors import SessionError
    from edge_client.types import RequestOutput, RideSettings, StreamChunk
    from speculation.sampling import SamplingParams

_HOMES = {
    "AsyncEdgeClient": "edge_client.client",
    "EdgeClient": "edge_client.client",
    "RequestOutput": "edge_client.types",
    "RideSettings": "edge_client.types",
    "SamplingParams": "speculation.sampling",
    "SessionError": "edge_client.errors",
    "StreamChunk": "edge_client.types",
}
__all__ = [
    "AsyncEdgeClient",
    "EdgeClient",
    "RequestOutput",
    "RideSettings",
    "SamplingParams",
    "SessionError",
    "StreamChunk",
]


def __getattr__(name: str) -> Any:
    """Import on first use: the command line must answer --help before gRPC is loaded."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
