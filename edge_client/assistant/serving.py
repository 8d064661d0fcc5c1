"""Running the assistant: an address that is safe, and uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Sequence

import uvicorn

from edge_client.assistant.app import Assistant, AssistantSettings
from edge_client.client import AsyncEdgeClient, EdgeClient

IDLE_S = 75  # longer than clients keep a connection for their next request, so that they do not write to a closed one
FAREWELL_S = 5  # how long answers may go on after the server is told to end


class ServingError(Exception):
    """The server cannot be started. The message says why."""


# Of an address that a name has and this machine has not, as where IPv6 is switched off.
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def listen(host: str, port: int) -> list[socket.socket]:
    """Bound sockets, one for each of the host's addresses, all on one port; port 0 takes a free one.

    localhost is 127.0.0.1 and ::1 to most programs, which try one and then, or never, the other. Raises ServingError.
    """
    sockets: list[socket.socket] = []
    try:
        found = dict.fromkeys(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE))
        away: OSError | None = None
        for family, kind, protocol, _, address in found:
            try:
                listening = socket.socket(family, kind, protocol)
                sockets.append(listening)
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6 and len(found) > 1:
                    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listening.bind((address[0], port, *address[2:]))
                port = listening.getsockname()[1]
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                away = error
                sockets.pop().close()
        if not sockets and away is not None:
            raise away
    except OSError as error:
        for listening in sockets:
            listening.close()
        raise ServingError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port"
        ) from error
    return sockets


def serve(
    client: EdgeClient, settings: AssistantSettings, listening: Sequence[socket.socket], ready: Callable[[], None]
) -> None:
    """Serve until a signal ends it; calls `ready` once it answers."""
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after an orderly end
        asyncio.run(_serve(client, settings, listening, ready))


async def _serve(
    client: EdgeClient, settings: AssistantSettings, listening: Sequence[socket.socket], ready: Callable[[], None]
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
    serving = asyncio.create_task(server.serve(list(listening)))
    while not (server.started or serving.done()):
        await asyncio.sleep(0.01)
    if server.started:
        ready()
    await serving
