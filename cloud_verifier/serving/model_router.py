"""Several models behind one port: each has a service of its own, and the first message says which one is meant."""

from __future__ import annotations

import asyncio
from typing import Any

from google.protobuf.message import DecodeError
from grpc import StatusCode
from outrider.v1 import verifier_pb2 as pb
from outrider.v1 import verifier_pb2_grpc as pb_grpc

from cloud_verifier.errors import VerifierError, refuse
from cloud_verifier.serving.service import VerifierService
from cloud_verifier.serving.stream import Context
from cloud_verifier.serving.stream_reader import read_open

NAME_CHARACTERS = 200  # of a wrong name that are repeated


class ModelRouter(pb_grpc.VerifierServiceServicer):
    """Sends every call to the service of its model; a call that names none, to the first."""

    def __init__(self, services: dict[str, VerifierService]) -> None:
        """services: by model, at least one. They must all have the same settings."""
        self._services = services
        self._first = next(iter(services.values()))

    @property
    def streams(self) -> int:
        """Sessions with a device at the other end just now, of all models."""
        return sum(service.streams for service in self._services.values())

    def drain(self) -> None:
        """Open no more sessions."""
        for service in self._services.values():
            service.drain()

    async def emptied(self) -> None:
        """Wait until no service has streams."""
        await asyncio.gather(*(service.emptied() for service in self._services.values()))

    def hand_over_sessions(self) -> None:
        """End every session, for its device to go on elsewhere."""
        for service in self._services.values():
            service.hand_over_sessions()

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Any) -> pb.GetModelInfoResponse:
        return await (await self._of(request.model, context)).GetModelInfo(request, context)

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        each = [await service.ListModels(request, context) for service in self._services.values()]
        return pb.ListModelsResponse(models=[model for one in each for model in one.models])

    async def GetVocabulary(self, request: pb.GetVocabularyRequest, context: Any) -> None:  # type: ignore[override]
        await (await self._of(request.model, context)).GetVocabulary(request, context)

    async def Generate(self, requests: Any, context: Context) -> None:  # type: ignore[override]
        first: Any
        try:
            first = await read_open(context, self._first.settings.open_timeout_s)
        except (TimeoutError, DecodeError, VerifierError) as error:
            first = error
        service = self._first  # which also has the words for whatever is no Open
        if isinstance(first, pb.GenerateRequest) and first.HasField("open"):
            if first.open.HasField("resume"):
                session_id = first.open.resume.session_id
                knowing = (one for one in self._services.values() if one.knows(session_id))
                service = next(knowing, self._first)
            else:
                service = await self._of(first.open.model, context)
        replayed: Any = _Replayed(context, first)
        await service.Generate(requests, replayed)

    async def _of(self, model: str, context: Any) -> VerifierService:
        if not model:
            return self._first
        if model not in self._services:
            names = ", ".join(repr(name) for name in self._services)
            sentence = f"model {model[:NAME_CHARACTERS]!r} is not served here; this verifier serves {names}"
            await refuse(context, VerifierError(StatusCode.NOT_FOUND, "MODEL", sentence))
        return self._services[model]


class _Replayed:
    """A context whose first message, or what came in its place, was read already."""

    def __init__(self, context: Any, first: Any) -> None:
        self._context, self._first = context, [first]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        if not self._first:
            return await self._context.read()
        first = self._first.pop()
        if isinstance(first, Exception):
            raise first
        return first
