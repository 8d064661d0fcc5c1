"""The terminal's last row, kept for a line of its own while an answer scrolls above it.

The rows above are made the scrolling region (DECSTBM), as package managers do for their progress: text goes on where
the cursor is, half lines too, and nothing is written twice, so nothing flickers. A thread draws the line anew a few
times a second if it says something new or the terminal has another size. Only on terminals that understand.

Whoever stops the program (Ctrl-Z) gets the whole screen back until it goes on, and whoever ends it (SIGTERM, a closed
terminal) for good.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import IO, Any, Self

from rich.cells import set_cell_size
from rich.console import Console

TICK_S = 0.2
LEAST_ROWS = 4
_SAVE, _RESTORE = "\x1b7", "\x1b8"
_ROOM_BELOW = "\x1bD\x1b[A"  # down a row, which scrolls if there is none, and up again: the column stays
_CLEAR_BELOW = "\x1b[J"  # from the cursor on; it stands at the answer's end
_ALL_ROWS = "\x1b[r"
_LEAVING = ("SIGTSTP", "SIGTERM", "SIGHUP")  # signals after which the screen is somebody else's; Windows has not all
_STYLE, _PLAIN = "\x1b[7m", "\x1b[0m"


class StatusLine:
    """A context manager. Whoever else writes to the terminal meanwhile holds `lock`."""

    def __init__(self, file: IO[str], tell: Callable[[], str], tick_s: float = TICK_S) -> None:
        """tell: what the line says, without control characters; called on a thread of its own."""
        self._file, self._tell, self._tick_s = file, tell, tick_s
        self.lock = threading.RLock()
        self._shown = ""
        self._size: tuple[int, int] | None = None  # columns, rows; None while there is no line
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outrider-status", daemon=True)
        self._before: dict[int, Any] = {}  # what signals did before

    @staticmethod
    def possible(console: Console) -> bool:
        """Whether this console is a terminal that has a last row."""
        return console.is_terminal and not console.is_dumb_terminal and not console.legacy_windows

    def __enter__(self) -> Self:
        self.draw()
        self._thread.start()
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in _LEAVING if hasattr(signal, name)):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # nohup has SIGHUP ignored
                    self._before[number] = signal.signal(number, self._leave)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for number, before in self._before.items():
            signal.signal(number, before)
        with self.lock:
            self._clear()
        self._thread.join()

    def _leave(self, number: int, _frame: FrameType | None) -> None:
        """As without us, between two writes of ours; the next tick draws the line again, if the program goes on."""
        with self.lock:
            self._clear()
            signal.signal(number, self._before[number])
            os.kill(os.getpid(), number)
            signal.signal(number, self._leave)

    def _clear(self) -> None:
        if self._size is not None:
            self._size = None
            self._write(_SAVE + _ALL_ROWS + _RESTORE + _CLEAR_BELOW)

    def _run(self) -> None:
        while not self._ended.wait(self._tick_s):
            self.draw()

    def draw(self) -> None:
        """Show what there is to tell now, if that or the terminal's size has changed."""
        said = self._tell()
        with self.lock:
            size = self._measure()
            if self._ended.is_set() or (size, said) == (self._size, self._shown):
                return
            sequence = ""
            if size != self._size:
                if self._size is not None:  # what was the last row is now anywhere below the cursor
                    sequence = _SAVE + _ALL_ROWS + _RESTORE + _CLEAR_BELOW
                if size is not None:
                    sequence += f"{_ROOM_BELOW}{_SAVE}\x1b[1;{size[1] - 1}r{_RESTORE}"
            if size is not None:
                columns, rows = size
                line = set_cell_size(f" {said}", columns)
                sequence += f"{_SAVE}\x1b[{rows};1H{_STYLE}{line}{_PLAIN}{_RESTORE}"
            self._size, self._shown = size, said
            self._write(sequence)

    def _measure(self) -> tuple[int, int] | None:
        try:
            columns, rows = os.get_terminal_size(self._file.fileno())
        except (OSError, ValueError):
            return None
        return (columns, rows) if rows >= LEAST_ROWS and columns > 0 else None

    def _write(self, sequence: str) -> None:
        try:  # past the file's buffer, which a signal's handler must not touch; whoever else writes has emptied it
            os.write(self._file.fileno(), sequence.encode(errors="replace"))
        except (OSError, ValueError):  # the terminal is gone; whoever writes the answer will hear of it
            self._size = None
