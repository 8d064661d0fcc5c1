"""A peer behind a TCP port: what a server that streams tokens costs, and nothing more.

A connection is a request: a line of JSON with `prompt` and `tokens`, answered by a line of ids for each time that the
peer had something, and by the end of the connection. These peers answer one request at a time; others wait their turn.
Prints its port once the model is loaded.
"""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from pathlib import Path

import click

from benchmarks.peers.kinds import PEERS, Models, Write


class _Server(socketserver.ThreadingTCPServer):
    write: Write
    turn: threading.Lock


class _Request(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a token is worth a packet
        asked = json.loads(self.rfile.readline())
        with self.server.turn:
            for token in self.server.write(asked["prompt"], asked["tokens"]):
                self.wfile.write(b"%d\n" % token)


@click.command()
@click.argument("peer", type=click.Choice(list(PEERS)))
@click.option("--folder", type=click.Path(path_type=Path), required=True)
@click.option("--gguf", type=click.Path(path_type=Path))
@click.option("--assistant", type=click.Path(path_type=Path))
@click.option("--threads", default=1)
def main(peer: str, folder: Path, gguf: Path | None, assistant: Path | None, threads: int) -> None:
    """Serve a peer on a free port of the loopback interface."""
    write = PEERS[peer].load(Models(folder, gguf, assistant, threads))
    with _Server(("127.0.0.1", 0), _Request) as server:
        server.write, server.turn = write, threading.Lock()
        click.echo(server.server_address[1])
        server.serve_forever()


if __name__ == "__main__":
    main()
