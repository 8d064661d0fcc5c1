"""Ctrl-C that is not lost: Python swallows an interrupt that comes while a finalizer or a C callback runs."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import NoReturn, TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def heeding(items: Iterable[T]) -> Iterator[Iterator[T]]:
    """The items, until Ctrl-C: it raises KeyboardInterrupt as ever, and if that was swallowed, before the next item.

    On a thread other than the main one nothing is done: signals come to the main thread.
    """
    pressed = threading.Event()

    def heeded() -> Iterator[T]:
        for item in items:
            if pressed.is_set():
                raise KeyboardInterrupt
            yield item

    def press(_number: int, _frame: FrameType | None) -> NoReturn:
        pressed.set()
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield heeded()
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield heeded()
    finally:
        signal.signal(signal.SIGINT, before)
