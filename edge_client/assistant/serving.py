"""Running the assistant: an address that is safe, and uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

import uvicorn

from edge_client.assistant.app import Assistant, AssistantSettings
from edge_client.client import AsyncEdgeClient, EdgeClient

IDLE_S = 75  # longer than clients keep a connection for their next request, so that they do not write to a closed one
FAREWELL_S = 5  # how long answers may go on after the server is told to end


class ServingError(Exception):
    """The server cannot be started. The message says why."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises ServingError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise ServingError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port"
        ) from error
    return listening


def serve(client: EdgeClient, settings: AssistantSettings, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until a signal ends it; calls `ready` once it answers."""
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after an orderly end
        asyncio.run(_serve(client, settings, listening, ready))


async def _serve(
    client: EdgeClient, settings: AssistantSettings, listening: socket.socket, ready: Callable[[], None]
) -> None:
    app = Assistant(AsyncEdgeClient(client), settings).app()
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=FAREWELL_S,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve([listening]))
    while not (server.started or serving.done()):
        await asyncio.sleep(0.01)
    if server.started:
        ready()
    await serving
