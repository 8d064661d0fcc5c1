"""How long, and how often, a device tries to open a session."""

from __future__ import annotations

import asyncio
import random

import grpc
import tenacity

from edge_client.errors import SessionError
from edge_client.link.channel import LinkSettings


class OpenRetryPolicy:
    """Of one session while it opens or comes back. Made on the event loop that opens it.

    A verifier that cannot be reached is tried again with growing pauses. One that refuses for the time being says when
    to come again: that is done as told if it is soon enough, and else the refusal stands.
    """

    def __init__(self, settings: LinkSettings, *, again: bool) -> None:
        """again: the session was open before, so its answer is worth a longer wait."""
        self._again = again
        self._place_timeout_s = settings.reconnect_timeout_s if again else settings.place_timeout_s
        self._began_s = asyncio.get_running_loop().time()
        self._received_bytes = -1
        self._growing = tenacity.wait_random_exponential(multiplier=0.05, max=1.0)
        self.last_refusal: SessionError | None = None
        self.deadline = asyncio.timeout(settings.reconnect_timeout_s if again else settings.connect_timeout_s)

    def progressed(self, received_bytes: int) -> None:
        """The verifier is reached, and has received so much of the request: time counts from the last new byte."""
        if received_bytes > self._received_bytes:
            self._received_bytes, self._began_s = received_bytes, asyncio.get_running_loop().time()
            self._wait_for_place()

    def queued(self) -> None:
        """The verifier has put the session into its queue."""
        self.last_refusal = SessionError(
            "RESOURCE_EXHAUSTED",
            "QUEUED",
            "the verifier is full, and no place became free in time; try again later",
            1.0,
        )
        self._wait_for_place()

    def worth_another_try(self, state: tenacity.RetryCallState) -> bool:
        """For tenacity: after a failure."""
        error = state.outcome.exception() if state.outcome else None
        if transient(error):
            return True
        if not isinstance(error, grpc.aio.AioRpcError) or error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            return False
        refusal = SessionError.from_rpc(error)
        told_s = refusal.retry_after_s
        if told_s is None:
            return self._again  # after its restart all devices of a verifier come back at once
        if asyncio.get_running_loop().time() + told_s > self._began_s + self._place_timeout_s:
            return False
        self.last_refusal = refusal
        self._wait_for_place()
        return True

    def wait_s(self, state: tenacity.RetryCallState) -> float:
        """For tenacity: before the next try."""
        error = state.outcome.exception() if state.outcome else None
        told_s = SessionError.from_rpc(error).retry_after_s if isinstance(error, grpc.aio.AioRpcError) else None
        # A little more than told, so that not all who were refused together come back together.
        return self._growing(state) if told_s is None else told_s * random.uniform(1.0, 1.25)

    def _wait_for_place(self) -> None:
        self.deadline.reschedule(self._began_s + self._place_timeout_s)


def transient(error: BaseException | None) -> bool:
    """Whether the way to the verifier is at fault. A verifier that fails by itself gives a reason; a torn connection
    can look like an internal error of gRPC's, but has none."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return isinstance(error, TimeoutError)
    if error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
        return not SessionError.from_rpc(error).reason
    return error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
