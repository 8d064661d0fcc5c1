"""The certificates between a device and its verifier: who vouches for them, until when, and what is wrong with them.

gRPC only says that it cannot connect. Here the same handshake is made once more with Python's `ssl`, which knows why.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Mapping
from enum import Enum, auto
from typing import NamedTuple

from edge_client.link.security import Security, host_and_port

SOON_DAYS = 14.0
_TIMEOUT_S = 5.0
_NOT_YET_VALID, _EXPIRED = 9, 10  # OpenSSL's X509_V_ERR_...
_WRONG_NAME = (62, 64)  # of a host, of an IP address
_FRAME_HEADER_BYTES, _SETTINGS = 9, b"\x04"  # of HTTP/2, with which every gRPC server begins
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"  # preface, empty SETTINGS


class Fault(Enum):
    """What is wrong with a connection, as far as certificates are concerned."""

    AWAY = auto()
    NO_TLS = auto()
    NO_VERIFIER = auto()
    TLS_ONLY = auto()
    UNTRUSTED = auto()
    WRONG_NAME = auto()
    OUT_OF_DATE = auto()
    CLIENT_CERTIFICATE_MISSING = auto()
    CLIENT_CERTIFICATE_REFUSED = auto()


class Verdict(NamedTuple):
    """fault: None if nothing is wrong. sentence: the facts, or what to do."""

    fault: Fault | None
    sentence: str

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.fault is None


def examine_certificate(verifier: str, security: Security) -> Verdict:
    """Whether device and verifier accept each other's certificates. verifier: HOST:PORT; security: with TLS.

    Raises ValueError if the device's own files cannot be used.
    """
    context = _context(security)
    host = host_and_port(verifier)[0]
    try:
        with (
            connected(verifier) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            certificate = secure.getpeercert() or {}
            refusal = _refusal(secure)
    except ssl.SSLCertVerificationError as error:
        return _untrusted(error, host, security)
    except ssl.SSLError as error:
        if "ALERT" in (error.reason or ""):  # TLS 1.2: the verifier judges within the handshake
            return _refused(error.reason or "", security)
        return Verdict(
            Fault.NO_TLS,
            f"{verifier} does not speak TLS as expected ({error.reason}); was it started with a certificate?",
        )
    except ConnectionResetError:
        return _refused("", security)
    except OSError as error:
        return _away(verifier, error)
    if refusal is not None:
        return _refused(refusal, security)
    return Verdict(None, _trusted(certificate, "the verifier's certificate"))


def examine_plaintext(verifier: str) -> Verdict:
    """Whether gRPC is spoken there without TLS. verifier: HOST:PORT."""
    try:
        with connected(verifier) as plain:
            plain.sendall(_HELLO)
            if _read(plain, _FRAME_HEADER_BYTES)[3:4] == _SETTINGS:
                return Verdict(None, f"{verifier} serves plaintext")
    except TimeoutError:
        return Verdict(None, f"{verifier} is silent")
    except ConnectionRefusedError as error:
        return _away(verifier, error)
    except ConnectionError:
        pass  # hung up on what it took for a bad handshake
    except OSError as error:
        return _away(verifier, error)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is said to it, nor believed
    context.set_alpn_protocols(["h2"])
    try:
        with connected(verifier) as plain, context.wrap_socket(plain, server_hostname=host_and_port(verifier)[0]):
            pass
    except OSError:
        return Verdict(Fault.NO_VERIFIER, f"{verifier} answers, but not as a verifier does; check the port")
    return Verdict(
        Fault.TLS_ONLY,
        f"{verifier} serves TLS only: use --tls, or --ssl-ca-certs with the certificate of its authority",
    )


def examine_own(security: Security) -> Verdict:
    """Whether the device's own certificate is in date. security: with a certificate and its key.

    Raises ValueError if the files cannot be used. The certificate is shown to nobody but this process.
    """
    assert security.certificate is not None
    security.credentials()  # says what is wrong with the files
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(security.certificate, security.key)
    server.verify_mode = ssl.CERT_REQUIRED
    server.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # its own word is enough: only the dates are in question
    server.load_verify_locations(security.certificate)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.load_cert_chain(security.certificate, security.key)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server)
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    certificate: Mapping[str, object] = {}
    try:
        for _ in range(4):  # flights of a handshake
            for side in (asking, answering):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        certificate = answering.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in (_EXPIRED, _NOT_YET_VALID):
            return Verdict(Fault.OUT_OF_DATE, _out_of_date(error.verify_code, f"{security.certificate}"))
        return Verdict(
            Fault.CLIENT_CERTIFICATE_REFUSED, f"{security.certificate} cannot be shown ({error.verify_message})"
        )
    except ssl.SSLError as error:  # of a kind that OpenSSL signs with only when told to, say
        return Verdict(Fault.CLIENT_CERTIFICATE_REFUSED, f"{security.certificate} cannot be shown ({error.reason})")
    return Verdict(None, _trusted(certificate, str(security.certificate), "valid"))


def _context(security: Security) -> ssl.SSLContext:
    security.credentials()
    context = ssl.create_default_context(cafile=security.ca_certificate)
    context.set_alpn_protocols(["h2"])
    if security.certificate is not None:
        context.load_cert_chain(security.certificate, security.key)
    return context


def connected(verifier: str, timeout_s: float = _TIMEOUT_S) -> socket.socket:
    """A connection to HOST:PORT. Raises OSError."""
    try:
        return socket.create_connection(host_and_port(verifier), timeout=timeout_s)
    except UnicodeError as error:  # two dots in a row, say
        raise OSError(f"{host_and_port(verifier)[0]!r} cannot be the name of a machine") from error


def _read(connection: socket.socket, count: int) -> bytes:
    """So many bytes, or what comes before the end."""
    content = b""
    while len(content) < count and (more := connection.recv(count - len(content))):
        content += more
    return content


def _refusal(secure: ssl.SSLSocket) -> str | None:
    """Why the verifier hangs up after the handshake, perhaps in no words; None if it goes on.

    With TLS 1.3 a device believes itself connected before the verifier has seen its certificate.
    """
    try:
        secure.sendall(_HELLO)
        return None if secure.recv(1) else ""
    except ssl.SSLError as error:
        return error.reason or ""
    except TimeoutError:
        return None
    except OSError:
        return ""


def _refused(alert: str, security: Security) -> Verdict:
    """alert: as OpenSSL names it; empty if the verifier, as gRPC does, just hung up."""
    if security.certificate is None:
        return Verdict(
            Fault.CLIENT_CERTIFICATE_MISSING,
            "the verifier asks devices for a certificate, and this one has none to show: ask its operator for one and "
            "give it by --ssl-client-certfile and --ssl-client-keyfile",
        )
    own = examine_own(security)
    if not own.ok:
        return own
    said = f" ({alert.lower().replace('_', ' ')})" if alert else ""
    return Verdict(
        Fault.CLIENT_CERTIFICATE_REFUSED,
        f"the verifier does not accept {security.certificate}{said}: most likely another authority signed it than the "
        "verifier trusts; ask its operator for one that it does",
    )


def _untrusted(error: ssl.SSLCertVerificationError, host: str, security: Security) -> Verdict:
    if error.verify_code in (_EXPIRED, _NOT_YET_VALID):
        return Verdict(Fault.OUT_OF_DATE, _out_of_date(error.verify_code, "the verifier's certificate"))
    if error.verify_code in _WRONG_NAME:
        return Verdict(
            Fault.WRONG_NAME,
            f"the verifier's certificate is not for {host}; use the name that it was made for, "
            f"or have one made for {host}",
        )
    by = (
        f"those of {security.ca_certificate}"
        if security.ca_certificate
        else "the system's; give its own by --ssl-ca-certs"
    )
    return Verdict(
        Fault.UNTRUSTED,
        f"no authority that is trusted here vouches for the verifier ({error.verify_message}); trusted are {by}",
    )


def _out_of_date(code: int, whose: str) -> str:
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    if code == _EXPIRED:
        return f"{whose} has expired, by this device's clock ({now}); have it renewed, or set the clock"
    return f"{whose} is not valid yet, by this device's clock ({now}); set the clock"


def _trusted(certificate: Mapping[str, object], whose: str, said: str = "trusted") -> str:
    left_days = (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / 86_400
    if left_days < SOON_DAYS:
        return f"{said}, but only for {left_days:.0f} more days; have {whose} renewed"
    return f"{said}, for {left_days:.0f} more days"


def _away(verifier: str, error: OSError) -> Verdict:
    return Verdict(
        Fault.AWAY, f"{verifier} cannot be reached ({error}); check that it runs and that the address is right"
    )
