"""Who calls: by the key in a call's metadata, or by the client certificate of its connection."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import grpc
from grpc import StatusCode

from cloud_verifier.errors import VerifierError, refuse
from cloud_verifier.security.keys import Entry, KeyStore, certificate_credential, hash_of
from cloud_verifier.security.principals import ANONYMOUS, Principal, Quota, caller

SCHEME = "Bearer "
REMOVED = (
    "the operator has taken this key or certificate away, and so this answer ends; ask for another, and with that open "
    "the session again with continue_from to go on"
)
OPEN_TO_ALL = "/grpc.health.v1.Health/"  # load balancers have no key, and nothing is told but whether it serves


class Authentication(grpc.aio.ServerInterceptor):
    """Lets a call through once it is known whose it is, and says so in `caller`.

    With keys, every call but health checks needs one, or the client certificate of one of their principals. Without,
    a client certificate names its own principal, and all calls without one are the anonymous principal's.
    """

    def __init__(self, keys: KeyStore | None = None, default: Quota | None = None) -> None:
        """default: of principals that no file names."""
        self._keys, self._default = keys, default or ANONYMOUS.quota

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the method's handler, for only there the connection's certificate is known."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(OPEN_TO_ALL):
            return handler
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._guarded(handler.stream_stream), handler.request_deserializer, handler.response_serializer
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._guarded(handler.unary_stream), handler.request_deserializer, handler.response_serializer
            )
        assert not handler.request_streaming, "the contract has no such method"
        return grpc.unary_unary_rpc_method_handler(
            self._guarded(handler.unary_unary), handler.request_deserializer, handler.response_serializer
        )

    def _guarded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        async def enter(context: Any) -> None:
            try:
                caller.set(self.principal(context.invocation_metadata() or (), context.auth_context()))
            except VerifierError as error:
                await refuse(context, error)

        if inspect.isasyncgenfunction(method):

            async def generating(request: Any, context: Any) -> Any:
                await enter(context)
                async for response in method(request, context):
                    yield response

            return generating

        async def answering(request: Any, context: Any) -> Any:
            await enter(context)
            return await method(request, context)

        return answering

    def principal(
        self, metadata: Sequence[tuple[str, str | bytes]], connection: dict[str, Sequence[bytes]]
    ) -> Principal:
        """Whose call this is. Raises VerifierError."""
        names = _names(connection)
        if self._keys is None:
            return Principal(f"certificate {names[0]}", self._default) if names else self._anonymous()
        by_certificate = self._keys.of_certificate(names)
        key = _key(metadata)
        entry = by_certificate if key is None else self._keys.of_key(key)
        if entry is None:
            raise _unknown(key)
        if by_certificate not in (None, entry):
            raise VerifierError(
                StatusCode.PERMISSION_DENIED,
                "KEY_OF_ANOTHER",
                "the client certificate and the API key belong to different principals; use those of one",
            )
        credential = certificate_credential(entry.certificate) if key is None else hash_of(key)
        return replace(_enabled(entry).principal, credential=credential)

    @property
    def has_keys(self) -> bool:
        """Whether only those are let in whom a file of keys knows."""
        return self._keys is not None

    def objections(self) -> Callable[[Principal], VerifierError | None]:
        """Asks of principals that were let in why they may not go on, by what the file of keys says now.

        Only with keys: without, nobody is ever sent away.
        """
        holders = self._keys.holders() if self._keys is not None else {}

        def objection(principal: Principal) -> VerifierError | None:
            entry = holders.get(principal.credential)
            if entry is None or entry.principal.name != principal.name:
                return VerifierError(StatusCode.UNAUTHENTICATED, "KEY_REMOVED", REMOVED)
            return _disabled() if entry.disabled else None

        return objection

    def _anonymous(self) -> Principal:
        return Principal(ANONYMOUS.name, self._default)


def _enabled(entry: Entry) -> Entry:
    if entry.disabled:
        raise _disabled()
    return entry


def _disabled() -> VerifierError:
    return VerifierError(
        StatusCode.PERMISSION_DENIED, "DISABLED", "the operator has disabled this principal; ask the operator"
    )


def _unknown(key: str | None) -> VerifierError:
    if key is None:
        sentence = (
            "this verifier serves those it knows; send an API key as metadata `authorization: Bearer KEY` "
            "(edge-client: --verifier-api-key-file)"
        )
        return VerifierError(StatusCode.UNAUTHENTICATED, "NO_KEY", sentence)
    sentence = "this API key is not known here; check how it was copied, or ask the operator for another"
    return VerifierError(StatusCode.UNAUTHENTICATED, "UNKNOWN_KEY", sentence)


def _key(metadata: Sequence[tuple[str, str | bytes]]) -> str | None:
    values = [value for name, value in metadata if name == "authorization"]
    if not values:
        return None
    value = values[0]
    if len(values) > 1 or not isinstance(value, str) or not value.startswith(SCHEME):
        raise VerifierError(
            StatusCode.UNAUTHENTICATED, "NO_BEARER", "the authorization metadata must be one `Bearer KEY`"
        )
    return value.removeprefix(SCHEME)


def _names(connection: dict[str, Sequence[bytes]]) -> list[str]:
    """Of the client certificate, that the connection's authorities have signed; the common name first."""
    names = [
        name.decode(errors="replace")
        for field in ("x509_common_name", "x509_subject_alternative_name")
        for name in connection.get(field, ())
        if name
    ]
    return names or [hashlib.sha256(pem).hexdigest() for pem in connection.get("x509_pem_cert", ())]
