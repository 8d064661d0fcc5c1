"""What is known of the verifier: which models it serves, and how their tokens are spelled."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence

from outrider.v1 import verifier_pb2 as pb

from edge_client.assistant.requests import DEFAULT_MODEL
from edge_client.assistant.token_strings import TokenStrings
from edge_client.client import AsyncEdgeClient

SHARED_S = 1.0
MOST_SPELLINGS = 4  # of some ten megabytes each


class Upstream:
    """Asks the verifier once for all who want to know at about the same time, and remembers what it told.

    known: the models it served when it was last asked, its client's own first; empty if it never told.
    """

    def __init__(self, client: AsyncEdgeClient, timeout_s: float) -> None:
        self._client, self._timeout_s = client, timeout_s
        self.known: Sequence[pb.GetModelInfoResponse] = ()
        self._told_s = 0.0
        self._asking: asyncio.Task[Sequence[pb.GetModelInfoResponse]] | None = None
        self._spellings: OrderedDict[str, TokenStrings] = OrderedDict()

    @property
    def default_name(self) -> str:
        """Of the model that answers whoever names none, as far as is known."""
        return self.known[0].model if self.known else DEFAULT_MODEL

    async def models(self) -> Sequence[pb.GetModelInfoResponse]:
        """Ask the verifier now; one question serves all who ask within a second. Raises SessionError."""
        recent = self._asking if time.monotonic() - self._told_s < SHARED_S else None
        return await asyncio.shield(recent or self._begin())  # whoever leaves does not take the answer from the others

    def _begin(self) -> asyncio.Task[Sequence[pb.GetModelInfoResponse]]:
        """Ask, unless a question is under way."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())  # maybe nobody waits
        return self._asking

    async def _ask(self) -> Sequence[pb.GetModelInfoResponse]:
        try:
            self.known = await self._client.models(self._timeout_s)
            return self.known
        finally:
            self._told_s = time.monotonic()

    async def spelling(self, model: pb.GetModelInfoResponse) -> TokenStrings:
        """Of this model's tokens. Raises SessionError, and VocabularyError."""
        spelling = self._spellings.get(model.vocabulary_fingerprint)
        if spelling is None:
            spelling = TokenStrings(await self._client.vocabulary(model))
            self._spellings[model.vocabulary_fingerprint] = spelling
            if len(self._spellings) > MOST_SPELLINGS:
                self._spellings.popitem(last=False)
        return spelling
