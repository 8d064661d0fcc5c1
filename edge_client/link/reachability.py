"""Does the verifier answer, and if not, what does it want? For people who set a device up, or wonder why it fails."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from outrider.v1 import verifier_pb2 as pb

from edge_client.errors import SessionError, unreachable
from edge_client.link.certificates import Fault, connected, examine_certificate, examine_plaintext
from edge_client.link.channel import Channel
from edge_client.link.security import Security, host_and_port, is_loopback

TIMEOUT_S = 4.0
_ROUND_TRIPS = 5
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")


class Wanted(Enum):
    """What would help where a verifier refuses or cannot be reached."""

    ADDRESS = auto()
    PROTECTION = auto()  # or leave to do without
    TLS = auto()
    AUTHORITY = auto()
    CLIENT_CERTIFICATE = auto()
    KEY = auto()
    NOTHING_FROM_HERE = auto()


_OF_FAULT = {
    Fault.TLS_ONLY: Wanted.TLS,
    Fault.UNTRUSTED: Wanted.AUTHORITY,
    Fault.CLIENT_CERTIFICATE_MISSING: Wanted.CLIENT_CERTIFICATE,
    Fault.CLIENT_CERTIFICATE_REFUSED: Wanted.CLIENT_CERTIFICATE,
    Fault.WRONG_NAME: Wanted.ADDRESS,
    Fault.OUT_OF_DATE: Wanted.NOTHING_FROM_HERE,
    Fault.NO_TLS: Wanted.ADDRESS,
    Fault.NO_VERIFIER: Wanted.ADDRESS,
}


@dataclass(frozen=True)
class Reached:
    """rtt_ms: the least of a few round trips."""

    info: pb.GetModelInfoResponse
    rtt_ms: float


@dataclass(frozen=True)
class Refusal:
    """sentence: what is wrong, and what to do."""

    wanted: Wanted
    sentence: str


def reach(verifier: str, model: str, security: Security) -> Reached | Refusal:
    """Ask what it serves. verifier: as `Channel` takes it."""
    try:
        channel = Channel(verifier, security=security)
    except ValueError as error:
        return Refusal(_wanted_before(verifier, security), str(error))
    try:
        if (refusal := _refused_at_once(verifier, security)) is not None:
            return refusal
        info = channel.model_info(model, TIMEOUT_S)
        return Reached(info, round_trip_ms(lambda: channel.model_info(model, TIMEOUT_S)))
    except SessionError as error:
        return _why(verifier, security, error)
    finally:
        channel.close()


def _wanted_before(verifier: str, security: Security) -> Wanted:
    """What is wrong when there is not even a channel."""
    try:
        security.credentials()
    except ValueError:
        return Wanted.CLIENT_CERTIFICATE if security.certificate is not None else Wanted.AUTHORITY
    try:
        for address in verifier.split(","):
            host_and_port(address.strip())
    except ValueError:
        return Wanted.ADDRESS
    return Wanted.ADDRESS if security.encrypted else Wanted.PROTECTION


def round_trip_ms(ask: Callable[[], object]) -> float:
    """The least of a few; ask: a call whose connection stands."""
    took_ms = []
    for _ in range(_ROUND_TRIPS):
        began_s = time.perf_counter()
        ask()
        took_ms.append((time.perf_counter() - began_s) * 1e3)
    return min(took_ms)


def _why(verifier: str, security: Security, error: SessionError) -> Refusal:
    if error.code == "UNAUTHENTICATED":
        return Refusal(Wanted.KEY, str(error))
    if error.code != "UNAVAILABLE":
        return Refusal(Wanted.NOTHING_FROM_HERE, str(error))
    return _of_certificates(verifier, security) or Refusal(Wanted.ADDRESS, str(error))


def _refused_at_once(verifier: str, security: Security) -> Refusal | None:
    """What needs no patience to be known; gRPC would try again until time is up. None if there may be a way."""
    proxied = any(os.environ.get(name) for name in _PROXIES)
    for address in verifier.split(","):
        if proxied and not is_loopback(host_and_port(address.strip())[0]):
            return None  # only gRPC knows how to go there
        try:
            with connected(address.strip(), TIMEOUT_S):
                break
        except TimeoutError:
            return None
        except OSError as error:
            refused = unreachable(verifier, error.strerror or str(error))
    else:
        return Refusal(Wanted.ADDRESS, str(refused))
    return _of_certificates(verifier, security)


def _of_certificates(verifier: str, security: Security) -> Refusal | None:
    address = verifier.split(",", maxsplit=1)[0].strip()
    verdict = examine_certificate(address, security) if security.encrypted else examine_plaintext(address)
    return Refusal(_OF_FAULT[verdict.fault], verdict.sentence) if verdict.fault in _OF_FAULT else None
