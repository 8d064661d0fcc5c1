"""Who may ask: keys, hosts, origins, sizes. Plain ASGI, so that streams pass through untouched."""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from edge_client.assistant.errors import ApiError
from edge_client.link.security import is_loopback


@dataclass(frozen=True)
class AccessSettings:
    """api_keys: one of them must be shown under /v1 and for /metrics, and by whoever is
    to be told why the verifier does not answer; without any nobody is asked. hosts: names under which this server may
    be asked, beside localhost and addresses; None: any. origins: of web pages from elsewhere that may ask.
    max_bytes: of a request's body."""

    api_keys: tuple[str, ...] = field(default=(), repr=False)
    hosts: frozenset[str] | None = frozenset()
    origins: tuple[str, ...] = ()
    max_bytes: int = 2 << 20

    def serves(self, host: str) -> bool:
        """Whether a request may come under this host name. An address cannot be another machine's name, as in vite and
        webpack's servers."""
        if self.hosts is None or host in self.hosts or host == "localhost" or host.endswith(".localhost"):
            return True
        try:
            return bool(ipaddress.ip_address(host))
        except ValueError:
            return False

    def trusts(self, headers: Headers) -> bool:
        """Whether a request shows one of the keys, if there are any."""
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        right = [hmac.compare_digest(shown.strip().encode(), key.encode()) for key in self.api_keys]
        return not right or (scheme.lower() == "bearer" and any(right))


class AccessControl:
    """Refuses what must not come in. Innermost but for the routes, so that refusals get CORS headers too."""

    def __init__(self, app: ASGIApp, access: AccessSettings) -> None:
        self._app, self._doors = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope["path"], Headers(scope=scope))
            except ApiError as error:
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> None:
        host = _host(f"//{headers.get('host', '')}")
        if not self._doors.serves(host):
            raise ApiError(
                403,
                f"this server is not {host or 'without a name'}; ask it by its address or as localhost, or allow the "
                "name with --allowed-host",
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is not None and not _is_of(origin, headers.get("host", "")) and not self._allows(origin):
            raise ApiError(
                403,
                "pages from other origins may not ask this server; allow one with --cors-origin",
                code="origin_not_allowed",
            )
        if (path.startswith("/v1/") or path == "/metrics") and not self._doors.trusts(headers):
            raise ApiError(
                401,
                "this server wants an API key, and this is none of its keys; send one as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
            )

    def _allows(self, origin: str) -> bool:
        return "*" in self._doors.origins or origin in self._doors.origins


def _host(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").removesuffix(".")
    except ValueError:
        return ""


def _is_of(origin: str, host: str) -> bool:
    """Whether a page's origin is the server that it asks, by its Host."""
    try:
        return bool(host) and urlsplit(origin).netloc == host
    except ValueError:
        return False


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The request's body. Raises ApiError once it is known to be too large."""
    too_large = ApiError(413, f"the request is larger than {max_bytes} bytes; shorten it", code="request_too_large")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > max_bytes:
        raise too_large
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > max_bytes:
            raise too_large
    return bytes(body)


def allowed_hosts(listens_on: str, more: Iterable[str], *, has_keys: bool) -> frozenset[str] | None:
    """Names under which a server may be asked, for `AccessSettings.hosts`. more: those that its user adds.

    A page elsewhere can have its own name resolve to this machine (DNS rebinding); its requests then come with that
    name. Off the loopback interface a server that wants a key may have any name, in a container or behind a proxy,
    until some are given: such a page has no key.
    """
    given = {name.lower().removesuffix(".") for name in more}
    if is_loopback(listens_on):
        return frozenset(given)
    if has_keys and not given:
        return None
    own = socket.gethostname().lower()
    return frozenset({*given, listens_on.lower(), own, f"{own}.local"})
