"""What is known of the verifier: which model it serves, and how its tokens are spelled."""

from __future__ import annotations

import asyncio
import time

from outrider.v1 import verifier_pb2 as pb

from edge_client.assistant.spelling import Spelling
from edge_client.client import AsyncEdgeClient

FRESH_S = 30.0
SHARED_S = 1.0


class Upstream:
    """Remembers what the verifier told, for every answer names its model and none is to wait for that."""

    def __init__(self, client: AsyncEdgeClient, timeout_s: float) -> None:
        self._client, self._timeout_s = client, timeout_s
        self._info: pb.GetModelInfoResponse | None = None
        self._told_s = 0.0
        self._asking: asyncio.Task[pb.GetModelInfoResponse] | None = None
        self._spelling: tuple[str, Spelling] | None = None

    async def ask(self) -> pb.GetModelInfoResponse:
        """Ask the verifier now; one question serves all who ask within a second. Raises SessionError."""
        recent = self._asking if time.monotonic() - self._told_s < SHARED_S else None
        return await asyncio.shield(recent or self._begin())  # whoever leaves does not take the answer from the others

    def _begin(self) -> asyncio.Task[pb.GetModelInfoResponse]:
        """Ask, unless a question is under way."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())  # maybe nobody waits
        return self._asking

    async def _ask(self) -> pb.GetModelInfoResponse:
        try:
            self._info = await self._client.model_info(self._timeout_s)
            return self._info
        finally:
            self._told_s = time.monotonic()

    async def info(self) -> pb.GetModelInfoResponse:
        """What it told last; asked anew beside the answer if that is old. Raises SessionError if it never told."""
        if self._info is None:
            return await asyncio.shield(self._begin())
        if time.monotonic() - self._told_s > FRESH_S:
            self._begin()
        return self._info

    async def spelling(self) -> Spelling:
        """Of the target's tokens. Raises SessionError, and VocabularyError."""
        fingerprint = (await self.info()).vocabulary_fingerprint
        if self._spelling is None or self._spelling[0] != fingerprint:
            self._spelling = fingerprint, Spelling(await self._client.vocabulary())
        return self._spelling[1]
