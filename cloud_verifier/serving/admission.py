"""Who gets a place: limits of each principal and of all together, and a queue in which principals take turns.

Nothing is done for a session before it has its place: a refusal costs the verifier next to nothing, and says when to
come again.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from grpc import StatusCode

from cloud_verifier.errors import VerifierError
from cloud_verifier.security.principals import Principal
from cloud_verifier.serving.token_bucket import TokenBucket

RETRY_S = 1.0


@dataclass(frozen=True)
class AdmissionSettings:
    """max_queue: sessions that wait for a place. queue_timeout_s: how long one waits at most. max_sessions: of all
    that are kept, those that wait for their device to come back included."""

    max_queue: int = 64
    queue_timeout_s: float = 30.0
    max_sessions: int = 4096


class SessionPlaces(Protocol):
    """Where the places are."""

    @property
    def room(self) -> int:
        """Sessions that would find a place now."""

    def free_place(self, principal: str | None = None, *, politely: bool = False) -> bool:
        """Give up a session whose device is away, of this principal if one is named; whether there was one.

        politely: only if it has been away for a while, or is there but silent. Without a name, one that holds a place
        of the engine. The device loses no word, for it opens again from its log.
        """


@dataclass
class _Account:
    """What a principal has: sessions with a place, and those that wait for one, oldest first."""

    sessions: int = 0
    queue: deque[asyncio.Future[None]] = field(default_factory=deque)
    tokens: TokenBucket | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is lost by forgetting it."""
        return not self.sessions and not self.queue and (self.tokens is None or self.tokens.full)


class Place:
    """One session's, from before its prompt is read until it is forgotten."""

    def __init__(self, admission: Admission, principal: Principal, account: _Account) -> None:
        self.principal = principal
        self._admission, self._account = admission, account
        self._reserved = self._held = True
        self._charged = 0

    def enter(self) -> None:
        """The session is in the engine's hands, or over already: `SessionPlaces.room` counts it from now on."""
        if self._reserved:
            self._reserved = False
            self._admission.unreserve()

    def charge(self, length: int) -> None:
        """The session's log has this length: what was not charged yet goes off the principal's tokens."""
        if self._account.tokens is not None and length > self._charged:
            self._account.tokens.take(length - self._charged)
        self._charged = max(self._charged, length)

    def leave(self) -> None:
        """The session is gone. May be called more than once."""
        if self._held:
            self._held = False
            self._admission.left(self._account)
            self.enter()


class Admission:
    """The door of one model. Lives on the event loop."""

    def __init__(
        self,
        house: SessionPlaces,
        settings: AdmissionSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._house, self._settings, self._clock = house, settings or AdmissionSettings(), clock
        self._accounts: dict[str, _Account] = {}
        self._turns: deque[str] = deque()  # principals with a queue, whose turn is next first
        self._reserved = self._sessions = 0

    @property
    def waiting(self) -> int:
        """Sessions in the queue."""
        return sum(len(self._accounts[name].queue) for name in self._turns)

    async def place(self, principal: Principal, tell: Callable[[int], Awaitable[None]]) -> Place:
        """A place for a session of this principal, once there is one.

        tell: called if there is none yet, with the number of sessions in the queue. Raises VerifierError, before or
        after waiting.
        """
        account = self._account(principal.name)
        self._check_quota(principal, account)
        self._check_kept()
        if self._turns or self._full:
            await self._wait(principal, account, tell)
        else:
            self._grant(account)
        return Place(self, principal, account)

    def check_rate(self, principal: Principal) -> None:
        """Raises VerifierError while a principal owes tokens."""
        self._check_rate(principal, self._account(principal.name))

    def charge(self, principal: Principal, tokens: int) -> None:
        """Take tokens off a principal's rate for a session that got no place."""
        account = self._account(principal.name)
        if account.tokens is not None:
            account.tokens.take(tokens)

    def _account(self, name: str) -> _Account:
        """A principal's. Whoever comes anew finds those of all that have gone cleared away."""
        if name not in self._accounts:
            for gone in [known for known, account in self._accounts.items() if account.idle]:
                del self._accounts[gone]
            self._accounts[name] = _Account()
        return self._accounts[name]

    @property
    def accounts(self) -> int:
        """Principals that have something here: sessions, a turn, or tokens that they owe."""
        return len(self._accounts)

    def room_changed(self) -> None:
        """Places may have become free: whose turn it is gets them."""
        while self._turns and not self._full:
            name = self._turns.popleft()
            queue = self._accounts[name].queue
            future = queue.popleft()
            if queue:
                self._turns.append(name)
            if not future.done():
                self._grant(self._accounts[name])
                future.set_result(None)

    def close(self, reason: VerifierError) -> None:
        """Send away whoever waits."""
        for name in self._turns:
            queue = self._accounts[name].queue
            for future in queue:
                if not future.done():
                    future.set_exception(reason)
            queue.clear()
        self._turns.clear()

    def _grant(self, account: _Account) -> None:
        account.sessions += 1
        self._sessions += 1
        self._reserved += 1

    def unreserve(self) -> None:
        """A place is not held for its session any more: the session has it, or is gone."""
        self._reserved -= 1
        self.room_changed()

    def left(self, account: _Account) -> None:
        """A session is gone."""
        account.sessions -= 1
        self._sessions -= 1

    @property
    def _full(self) -> bool:
        return self._house.room <= self._reserved

    def _check_quota(self, principal: Principal, account: _Account) -> None:
        quota = principal.quota
        known = account.sessions + len(account.queue)
        if (
            quota.max_sessions is not None
            and known >= quota.max_sessions
            and not self._house.free_place(principal.name)
        ):
            raise _exhausted(
                "PRINCIPAL_SESSIONS", f"this key has {known} sessions, as many as it may; end one, or try again later"
            )
        self._check_rate(principal, account)

    def _check_rate(self, principal: Principal, account: _Account) -> None:
        quota = principal.quota
        if quota.tokens_per_minute is None:
            account.tokens = None
            return
        if account.tokens is None or account.tokens.burst != quota.tokens_per_minute:
            account.tokens = TokenBucket(quota.tokens_per_minute / 60, quota.tokens_per_minute, self._clock)
        if wait_s := account.tokens.wait_s:
            raise _exhausted(
                "PRINCIPAL_TOKENS",
                f"this key has used up its {quota.tokens_per_minute} tokens per minute",
                None if math.isinf(wait_s) else wait_s,
            )

    def _check_kept(self) -> None:
        if self._sessions >= self._settings.max_sessions:
            raise _exhausted("SESSIONS", f"this verifier keeps {self._sessions} sessions, as many as it may")

    async def _wait(self, principal: Principal, account: _Account, tell: Callable[[int], Awaitable[None]]) -> None:
        waiting, limit = self.waiting, principal.quota.max_queued
        if limit is not None and len(account.queue) >= limit:
            raise _exhausted("PRINCIPAL_QUEUE", f"no place is free, and this key has {limit} sessions waiting already")
        # One whose device is away or silent gives way before anybody is refused.
        made = self._house.free_place(politely=True)
        if waiting >= self._settings.max_queue and not (made or self._house.free_place()):
            queue = f", and {waiting} sessions wait for one" if waiting else ""
            raise _exhausted("SESSIONS", f"all places of this verifier are taken{queue}; try again later")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not account.queue:
            self._turns.append(principal.name)
        account.queue.append(future)
        try:
            async with asyncio.timeout(self._settings.queue_timeout_s):
                await tell(waiting + 1)
                await future
        except BaseException as error:
            self._give_up(principal.name, account, future)
            if isinstance(error, TimeoutError):
                raise _exhausted("QUEUE_TIMEOUT", "no place became free in time; try again later") from error
            raise

    def _give_up(self, name: str, account: _Account, future: asyncio.Future[None]) -> None:
        if (
            future.done() and not future.cancelled() and future.exception() is None
        ):  # it was given a place in the very moment
            self.left(account)
            self.unreserve()
            return
        future.cancel()
        if future in account.queue:
            account.queue.remove(future)
            if not account.queue:
                self._turns.remove(name)


def _exhausted(reason: str, sentence: str, retry_after_s: float | None = RETRY_S) -> VerifierError:
    return VerifierError(StatusCode.RESOURCE_EXHAUSTED, reason, sentence, retry_after_s=retry_after_s)
