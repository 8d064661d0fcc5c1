"""An asyncio event loop whose timers are accurate to about 0.1 ms.

The stock loop on Linux waits in `epoll_wait`, whose timeout counts whole milliseconds, so every timer fires up to 1 ms
late. `select` takes microseconds, and an epoll descriptor can itself be selected on: waiting there first gives precise
timers without spinning, for any number of connections. kqueue (macOS) is precise already.
"""

from __future__ import annotations

import asyncio
import select
import selectors
import sys

if sys.platform == "linux":

    class _MicrosecondSelector(selectors.EpollSelector):
        """Epoll with timeouts in microseconds."""

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is not None and timeout > 0:
                select.select([self], [], [], timeout)
                timeout = 0
            return super().select(timeout)


_SELECT_LIMIT = 1024  # `select` refuses descriptors from here on (FD_SETSIZE)


def precise_event_loop() -> asyncio.AbstractEventLoop:
    """A new event loop with precise timers; for `asyncio.Runner(loop_factory=...)`.

    Falls back to the platform's own timers where the epoll descriptor is too high for `select`.
    """
    if sys.platform == "linux":
        selector = _MicrosecondSelector()
        if selector.fileno() < _SELECT_LIMIT:
            return asyncio.SelectorEventLoop(selector)
        selector.close()
    return asyncio.SelectorEventLoop()
