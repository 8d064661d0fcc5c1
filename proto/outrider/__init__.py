"""Outrider's public API: the Python client, and the contract in `outrider.v1`.

from outrider import EdgeClient, SamplingParams

with EdgeClient("127.0.0.1:50051", drafter="demo") as client:
    print(client.generate("Hello", SamplingParams(temperature=0.8, max_tokens=64)).text)

The names are imported from their homes on first use: the generated code of the contract (`outrider.v1.verifier_pb2`,
`outrider.v1.verifier_pb2_grpc`) is all that a verifier needs of this package, and `--help` must not wait for gRPC.
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

    __version__: str

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
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("outrider")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
