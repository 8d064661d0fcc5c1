"""The verifier's certificate, read again when its files change: a renewed one is used from the next connection on.

Connections that stand keep the certificate they began with, so no session is dropped.
"""

from __future__ import annotations

import logging
import os
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

log = logging.getLogger(__name__)

Fingerprint = tuple[tuple[int, int, int], ...]


class TlsError(Exception):
    """Files that do not make a certificate. The message names them and says what is wrong."""


@dataclass(frozen=True)
class TlsFiles:
    """PEM files: the certificate chain, its private key, and the authorities whose client certificates are required.

    client_authorities: None asks devices for no certificate.
    """

    certificate: Path
    key: Path
    client_authorities: Path | None = None

    @property
    def paths(self) -> list[Path]:
        """All of them."""
        return [path for path in (self.certificate, self.key, self.client_authorities) if path is not None]

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Check that the files belong together, and hand them to gRPC. Raises TlsError."""
        # gRPC takes any bytes and refuses the handshakes later; OpenSSL says at once what is wrong.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise TlsError(
                f"{self.certificate} and {self.key} are no certificate with its key ({_reason(error)}); both must be "
                "PEM, the key without a password and the one the certificate was made for"
            ) from error
        try:
            if self.client_authorities is not None:
                context.load_verify_locations(self.client_authorities)
            authorities = self.client_authorities.read_bytes() if self.client_authorities else None
            return grpc.ssl_server_certificate_configuration(
                [(self.key.read_bytes(), self.certificate.read_bytes())], authorities
            )
        except (ssl.SSLError, OSError) as error:
            raise TlsError(
                f"{self.client_authorities} has no certificates of authorities ({_reason(error)}); it must be PEM"
            ) from error

    def fingerprint(self) -> Fingerprint:
        """Changes when a file does. Raises OSError."""
        return tuple((s.st_mtime_ns, s.st_size, s.st_ino) for s in map(os.stat, self.paths))


class ReloadedCertificate:
    """What gRPC asks at every handshake, on threads of its own."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises TlsError if the files are wrong now; later the last good ones stay in use."""
        self._files = files
        try:
            self._seen = files.fingerprint()
        except OSError as error:
            raise TlsError(f"cannot read the certificate: {error}") from error
        self.first = files.read()

    def credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`."""
        return grpc.dynamic_ssl_server_credentials(
            self.first,
            self._changed,  # type: ignore[arg-type]  # None means unchanged, which the stubs do not know
            require_client_authentication=self._files.client_authorities is not None,
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new certificate if there is one. A pair that is being replaced file by file is tried again."""
        try:
            now = self._files.fingerprint()
            if now == self._seen:
                return None
            read = self._files.read()
            if self._files.fingerprint() != now:
                return None  # changed while it was read: the next handshake finds it complete
        except OSError as error:
            log.warning("the new certificate cannot be read (%s); the old one stays in use", error)
            return None
        except TlsError as error:
            self._seen = now
            log.warning("%s; the old certificate stays in use", error)
            return None
        self._seen = now
        log.info("a new certificate is in use: %s", self._files.certificate)
        return read


def _no_password() -> str:
    raise ValueError("the key has a password")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return str(error)
