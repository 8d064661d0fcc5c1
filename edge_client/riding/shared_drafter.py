"""A client's one drafter, which all its answers share: whose turn it is, who may write alone with it, its end."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

from edge_client.drafters.base import Drafter, DrafterError
from edge_client.riding.drafter_lease import DrafterLease
from edge_client.riding.drafter_queue import DrafterQueue

log = logging.getLogger(__name__)


class SharedDrafter:
    """closed: set when the client is closed; nobody calls the drafter from then on, but for calls that have begun."""

    def __init__(self, lease: DrafterLease) -> None:
        """Raises what the drafter raises."""
        self.lease = lease
        self.queue = DrafterQueue(lambda: self.busy_s)
        self.closed = threading.Event()
        self._alone: DrafterLease | None = None
        # Asked once: an answer starts on its caller's thread, which must not wait for the drafter.
        self.can_answer_alone = lease.drafter.speaker() is not None

    @property
    def busy_s(self) -> float:
        """How long the present call into the drafter, or into its model alone, has taken so far; 0 if there is none."""
        alone = self._alone
        return max(self.lease.busy_s, alone.busy_s if alone is not None else 0.0)

    @contextlib.contextmanager
    def alone(self, given_up: Callable[[], bool]) -> Iterator[DrafterLease]:
        """The drafter's own model, for whoever writes without the verifier, once it is free; called and left on one
        thread.

        Raises DrafterError if there is none or the caller gave up, and what the drafter raises.
        """
        who, lease = object(), self.lease
        self.queue.ask(who, lambda: None)
        try:
            while not self.queue.take(who, timeout_s=0.1):
                if given_up():
                    raise DrafterError("nobody waits for it any more")
            with lease.calling():
                model = lease.drafter.speaker()
            if model is None:
                raise DrafterError("this device has no model that could answer")
            if model is lease.drafter:
                yield lease
            else:
                lease.rollback(0)
                with self._emptied(model) as inner:
                    yield inner
        finally:
            self.queue.leave(who)

    @contextlib.contextmanager
    def _emptied(self, model: Drafter) -> Iterator[DrafterLease]:
        """Holds nothing before and after."""
        inner = self._alone = DrafterLease(model)
        try:
            with inner.calling():
                model.rollback(0)
            try:
                yield inner
            finally:
                with inner.calling():
                    model.rollback(0)
        finally:
            self._alone = None

    def close(self, timeout_s: float, unused: Callable[[float], bool] | None = None) -> None:
        """Free the drafter, unless it does not answer in time. unused: waits until nobody without a turn calls it.

        What a runtime is at work on is not freed: that would kill the process.
        """
        self.closed.set()
        deadline_s = time.monotonic() + timeout_s
        free = unused is None or unused(timeout_s)
        free = free and self.queue.take(self, timeout_s=max(0.0, deadline_s - time.monotonic()))
        if free:
            closing = threading.Thread(target=self._close, name="outrider-close", daemon=True)
            closing.start()
            closing.join(timeout_s)
            free = not closing.is_alive()
        if not free:
            log.warning("the drafter has not answered for %.0f s; its memory stays taken", timeout_s)

    def _close(self) -> None:
        try:
            self.lease.drafter.close()
        except BaseException:  # on a thread of its own, where nothing but the drafter can have raised it
            log.exception("the drafter could not be closed")
