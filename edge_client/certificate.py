"""The verifier's certificate as this device sees it: who vouches for it, until when, and what is wrong with it."""

from __future__ import annotations

import socket
import ssl
import time

from edge_client.security import Security

SOON_DAYS = 14.0
_TIMEOUT_S = 5.0
_NOT_YET_VALID, _EXPIRED, _WRONG_NAME = 9, 10, 62  # OpenSSL's X509_V_ERR_...


def examine_certificate(verifier: str, security: Security) -> tuple[bool, str]:
    """Whether it can be trusted, and a sentence. verifier: HOST:PORT."""
    host, _, port = verifier.rpartition(":")
    host = host.strip("[]")
    try:
        context = ssl.create_default_context(cafile=security.ca_certificate)
        context.set_alpn_protocols(["h2"])
        if security.certificate is not None:
            context.load_cert_chain(security.certificate, security.key)
        with (
            socket.create_connection((host, int(port)), timeout=_TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            certificate = secure.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        return False, _untrusted(error, host, security)
    except ssl.SSLError as error:
        return False, f"{verifier} does not speak TLS as expected ({error.reason}); was it started with a certificate?"
    except OSError as error:
        return False, f"{verifier} cannot be reached ({error}); check that it runs and that the address is right"
    left_days = (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / 86_400
    if left_days < SOON_DAYS:
        return True, f"trusted, but only for {left_days:.0f} more days; have the verifier's certificate renewed"
    return True, f"trusted, for {left_days:.0f} more days"


def _untrusted(error: ssl.SSLCertVerificationError, host: str, security: Security) -> str:
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    if error.verify_code == _EXPIRED:
        return f"the certificate has expired, by this device's clock ({now}); renew it, or set the clock"
    if error.verify_code == _NOT_YET_VALID:
        return f"the certificate is not valid yet, by this device's clock ({now}); set the clock"
    if error.verify_code == _WRONG_NAME:
        return f"the certificate is not for {host}; use the name that it was made for"
    by = (
        f"those of {security.ca_certificate}"
        if security.ca_certificate
        else "the system's; give its own by --ssl-ca-certs"
    )
    return f"no authority that is trusted here vouches for it ({error.verify_message}); trusted are {by}"
