"""Outrider's public API: the Python client, and the contract in `outrider.v1`.

from outrider import EdgeClient, SamplingParams

with EdgeClient("127.0.0.1:50051", drafter="demo") as client:
    print(client.generate("Hello", SamplingParams(temperature=0.8, max_tokens=64)).text)

The names are those of `edge_client`, and are imported on first use: the generated code of the contract
(`outrider.v1.verifier_pb2`, `outrider.v1.verifier_pb2_grpc`) is all that a verifier needs of this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_client import (
        AsyncEdgeClient,
        DeviceSettings,
        DrafterError,
        EdgeClient,
        LinkSettings,
        LinkState,
        Objective,
        OfflineAnswers,
        RequestMetrics,
        RequestOutput,
        RideSettings,
        SamplingParams,
        Security,
        SessionError,
        StreamChunk,
        TokenLogprob,
    )

    __version__: str

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
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import edge_client

    return getattr(edge_client, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
