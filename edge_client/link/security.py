"""How a device and its verifier know each other: certificates, and the key that names whose device it is."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from edge_client.errors import SessionError

MAX_PORT = 65535


@dataclass(frozen=True)
class Security:
    """What a channel needs beyond an address; files are PEM.

    tls: use it with the system's authorities. ca_certificate: use it and trust these authorities instead. certificate
    and key: show them to a verifier that asks devices for one. api_key: names the principal. insecure: allow plaintext
    to another machine, prompts, answers and api_key included.
    """

    tls: bool = False
    ca_certificate: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    api_key: str = field(default="", repr=False)
    insecure: bool = False

    @property
    def encrypted(self) -> bool:
        """Whether TLS is used."""
        return self.tls or self.ca_certificate is not None or self.certificate is not None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes along with every call."""
        return (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()

    def check(self, host: str) -> None:
        """Raises ValueError if it does not fit together, or if plaintext would leave the machine unasked."""
        if not self.encrypted and not self.insecure and not is_loopback(host):
            raise ValueError(
                f"{host} is not this machine, and without TLS prompts and answers would travel in the clear; use TLS "
                "(--tls, or --ssl-ca-certs FILE for a certificate of your own), or allow plaintext with --insecure if "
                "the network is yours alone"
            )
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a client certificate needs its private key and the key needs its certificate; give both")
        if not (self.api_key.isascii() and self.api_key.isprintable()) or " " in self.api_key:
            raise ValueError("the API key has characters that no key has; check how it was copied")

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Of the channel; None for plaintext. Raises ValueError for files that are none."""
        if not self.encrypted:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:  # gRPC takes any bytes and fails to connect for ever; OpenSSL says what is wrong
            if self.ca_certificate is not None:
                context.load_verify_locations(self.ca_certificate)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key, password=_no_password)
            return grpc.ssl_channel_credentials(
                *(path.read_bytes() if path else None for path in (self.ca_certificate, self.key, self.certificate))
            )
        except (ssl.SSLError, OSError, ValueError) as error:
            files = ", ".join(str(path) for path in (self.ca_certificate, self.certificate, self.key) if path)
            raise ValueError(
                f"cannot use {files} for TLS ({error}); PEM files without a password are needed"
            ) from error


def refused_handshake(verifier: str, details: str) -> SessionError | None:
    """What a failed connection says of certificates, if it does: trying again would not help."""
    if "CERTIFICATE_VERIFY_FAILED" in details:
        said = "its certificate is not signed by an authority that this device trusts, or has expired"
        remedy = "give the authority's certificate (--ssl-ca-certs)"
    elif "Hostname Verification Check failed" in details:
        said = "its certificate is made for another name"
        remedy = "use the name that the certificate has"
    elif "WRONG_VERSION_NUMBER" in details:
        said = "it does not speak TLS"
        remedy = "leave TLS out if it serves plaintext on purpose, or check the port"
    else:
        return None
    return SessionError("UNAVAILABLE", "CERTIFICATE", f"the verifier at {verifier} is not trusted: {said}; {remedy}")


def _no_password() -> str:
    raise ValueError("the key has a password")


def host_and_port(address: str) -> tuple[str, int]:
    """Of HOST:PORT, where an IPv6 address has brackets, which are taken off. Raises ValueError."""
    scheme, separator, _ = address.partition("://")
    if separator:
        raise ValueError(
            f"the verifier's address is {address!r}; it is no URL: leave {scheme}:// out and write HOST:PORT, with the "
            "port of the verifier's gRPC (50051 by default)"
        )
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or not (port.isascii() and port.isdigit()):
        raise ValueError(f"the verifier's address is {address!r}; it must look like HOST:PORT, or HOST:PORT,HOST:PORT")
    if ":" in host and bare == host:
        raise ValueError(
            f"the verifier's address is {address!r}; an IPv6 address needs brackets, such as [::1]:50051, or else "
            "nobody knows where it ends and the port begins"
        )
    if not 1 <= int(port) <= MAX_PORT:
        raise ValueError(f"the verifier's address is {address!r}; a port is a number from 1 to {MAX_PORT}")
    return bare, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
