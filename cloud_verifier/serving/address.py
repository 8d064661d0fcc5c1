"""Where a verifier listens, with which certificate. `check` costs milliseconds and imports no torch."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cloud_verifier.security.tls import ReloadedCertificate, TlsError, TlsFiles

if TYPE_CHECKING:
    import grpc


class ServerError(Exception):
    """A verifier that cannot start, or cannot go on. The message says why and what to do."""


@dataclass(frozen=True)
class Address:
    """Where to listen, with which certificate. Plaintext leaves the loopback interface only if `insecure` says so.

    client_authorities: PEM file; devices must show a certificate that one of them signed. reuse_port: several processes
    may listen on the port, so that a successor can start before this one leaves.
    """

    host: str = "127.0.0.1"
    port: int = 50051
    certificate: Path | None = None
    key: Path | None = None
    insecure: bool = False
    client_authorities: Path | None = None
    reuse_port: bool = False

    def check(self) -> None:
        """Refuse what `add_to` would refuse, before a model is loaded. Raises ServerError."""
        self._certificate()
        self._check_port()

    def add_to(self, server: grpc.aio.Server) -> int:
        """Bind; returns the port. Raises ServerError."""
        certificate = self._certificate()
        where = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        try:
            if certificate is not None:
                return server.add_secure_port(where, certificate.credentials())
            return server.add_insecure_port(where)
        except (OSError, RuntimeError) as error:
            self._check_port()  # gRPC does not say why
            raise ServerError(f"cannot listen on {where}") from error

    def _certificate(self) -> ReloadedCertificate | None:
        """None: plaintext, where that is allowed."""
        if self.certificate and self.key:
            try:
                return ReloadedCertificate(TlsFiles(self.certificate, self.key, self.client_authorities))
            except TlsError as error:
                raise ServerError(str(error)) from error
        if self.certificate or self.key or self.client_authorities:
            raise ServerError("TLS needs both --ssl-certfile and --ssl-keyfile")
        if not self._loopback() and not self.insecure:
            raise ServerError(
                f"{self.host} is not a loopback address, and without TLS prompts and answers would travel in "
                "the clear; give --ssl-certfile and --ssl-keyfile, or --insecure if the network is yours alone"
            )
        return None

    def _check_port(self) -> None:
        """One address of the host that can be bound is enough, as for gRPC."""
        where = f"port {self.port} of {self.host}"
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ServerError(
                f"cannot listen on {where}: {self.host!r} is no address of this machine ({reason}); check --host"
            ) from error
        refused: OSError | None = None
        for family, kind, protocol, _, address in found:
            try:
                with socket.socket(family, kind, protocol) as trial:
                    trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    if self.reuse_port and hasattr(socket, "SO_REUSEPORT"):
                        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                    trial.bind(address)
                    return
            except OSError as error:
                refused = error
        assert refused is not None
        raise ServerError(f"cannot listen on {where}: {self._advice(refused)}") from refused

    def _advice(self, refused: OSError) -> str:
        if refused.errno == errno.EADDRINUSE:
            return "another program listens there; stop it, or give another --port (0 takes a free one)"
        if refused.errno == errno.EADDRNOTAVAIL:
            return "this machine has no such address; check --host"
        if refused.errno == errno.EACCES:
            return "this user may not; give a --port from 1024 on"
        return os.strerror(refused.errno) if refused.errno else str(refused)

    def _loopback(self) -> bool:
        if self.host == "localhost":
            return True
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return False
