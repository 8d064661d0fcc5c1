"""Precise timers and prompt wake-ups."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time

import pytest

from netlab.event_loop import precise_event_loop, wake_promptly


def test_timers_never_fire_early() -> None:
    async def test() -> None:
        for delay_ms in (0, 0.1, 0.7, 3.3):
            started_at = time.monotonic()
            await asyncio.sleep(delay_ms / 1000)
            assert time.monotonic() - started_at >= delay_ms / 1000

    with asyncio.Runner(loop_factory=precise_event_loop) as runner:
        runner.run(test())


def test_sockets_wake_a_loop_that_waits_for_a_timer() -> None:
    async def test() -> None:
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            loop = asyncio.get_running_loop()
            loop.call_later(0.01, far.send, b"x")
            assert await asyncio.wait_for(loop.sock_recv(near, 1), 20) == b"x"

    with asyncio.Runner(loop_factory=precise_event_loop) as runner:
        runner.run(test())


@pytest.mark.parametrize("privileged", [True, False])
def test_prompt_wake_ups_are_asked_for_with_the_rights_there_are(
    privileged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError

    if not privileged and hasattr(os, "sched_setscheduler"):
        monkeypatch.setattr(os, "sched_setscheduler", forbidden)
    asked: list[bool] = []

    def ask() -> None:
        wake_promptly()
        asked.append(True)

    thread = threading.Thread(target=ask)  # of its own, so that the test run keeps its priority
    thread.start()
    thread.join()
    assert asked
