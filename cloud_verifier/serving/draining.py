"""Leaving in order: no new sessions, time for those that run, and a hand-back of those that need longer.

Handing back costs a device nothing but a reconnection: it has the log, and any verifier of the same target goes on from
it with the same words.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

import grpc
from grpc_health.v1 import health

from cloud_verifier.serving.model_router import ModelRouter
from cloud_verifier.serving.service import VerifierService

log = logging.getLogger(__name__)

HAND_BACK_S = 1.0  # time for streams to carry the news


class Draining:
    """How one verifier leaves. `hurry` may be set at any time: what still runs is then handed back at once."""

    def __init__(
        self,
        server: grpc.aio.Server,
        liveness: health.aio.HealthServicer,
        service: VerifierService | ModelRouter,
        *,
        shares_port: bool,
    ) -> None:
        """shares_port: another process listens on the same port and is to get all new connections from now on."""
        self._server, self._liveness, self._service, self._shares_port = server, liveness, service, shares_port
        self.hurry = asyncio.Event()

    async def drain(self, timeout_s: float) -> None:
        """Say NOT_SERVING, refuse new sessions, and return when the last stream has ended or was handed back."""
        await self._liveness.enter_graceful_shutdown()
        self._service.drain()
        # A port that is ours alone goes on answering health checks, and new sessions with the reason. A shared one is
        # left to the successor: streams that stand stay, but their connections take no new ones.
        closing = asyncio.create_task(self._server.stop(timeout_s + HAND_BACK_S)) if self._shares_port else None
        log.info("draining: %d streams may go on for up to %g s", self._service.streams, timeout_s)
        hurried = asyncio.create_task(self.hurry.wait())
        emptied = asyncio.create_task(self._service.emptied())
        await asyncio.wait({hurried, emptied}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if self._service.streams:
            log.info("handing back %d sessions", self._service.streams)
            self._service.hand_over_sessions()
            await asyncio.wait({emptied}, timeout=HAND_BACK_S)
        for task in (hurried, emptied, closing):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
