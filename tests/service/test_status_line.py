"""The chat's status line on a terminal in memory: where it stands, that it leaves no trace, and what it says when."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import termios
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from edge_client.chat.progress import Progress
from edge_client.chat.status import StatusLine
from edge_client.types import LinkState, StreamChunk
from tests.harness import InProcessVerifier
from tests.screen import Screen, UnknownSequence
from tests.service.engines import GatedEngine
from tests.service.links import Road
from tests.service.raw import DEADLINE_S
from tests.service.test_chat import ROOT, command, words

ROWS, COLUMNS = 8, 40


class Terminal:
    """A pseudo-terminal and what a person would see on it."""

    def __init__(self) -> None:
        self._master, self.slave = pty.openpty()
        self.screen = Screen(COLUMNS, ROWS, self.type)
        self.resize(COLUMNS, ROWS)

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(columns, rows)
        termios.tcsetwinsize(self.slave, (rows, columns))

    def rows(self) -> list[str]:
        """What stands on the screen now, without the empty rows at its end."""
        waiting = select.poll()  # `select.select` takes no descriptor above 1023
        waiting.register(self._master, select.POLLIN)
        while waiting.poll(0):
            self.screen.feed(os.read(self._master, 1 << 16))
        rows = self.screen.display
        while rows and not rows[-1]:
            rows.pop()
        return rows

    def shows(self, seen: Callable[[list[str]], bool]) -> list[str]:
        """The rows, once they are as wanted."""
        end_s = time.monotonic() + DEADLINE_S
        while not seen(rows := self.rows()):
            assert time.monotonic() < end_s, rows
            time.sleep(0.01)
        return rows

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def close(self) -> None:
        os.close(self._master)
        os.close(self.slave)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


@pytest.fixture
def file(terminal: Terminal) -> Iterator[IO[str]]:
    tty.setraw(terminal.slave)
    termios.tcsetwinsize(terminal.slave, (ROWS, COLUMNS))
    with os.fdopen(os.dup(terminal.slave), "w") as opened:
        yield opened


def write(file: IO[str], text: str) -> None:
    file.write(text.replace("\n", "\r\n"))
    file.flush()


def test_the_screen_of_these_tests_refuses_what_it_does_not_know() -> None:
    screen = Screen(COLUMNS, ROWS, print)
    for sequence in ("\x1b[2L", "\x1b]0;title\a", "\x1bc", "\x1b[?1049h", "\x1b[1J", "\x1b(B", "\u4f60"):
        with pytest.raises(UnknownSequence):
            screen.feed(sequence.encode())


def test_text_scrolls_above_it_and_it_leaves_no_trace(terminal: Terminal, file: IO[str]) -> None:
    write(file, "\n" * (ROWS - 1) + "half a ")
    said = ["one"]
    with StatusLine(file, lambda: said[0], tick_s=0.01) as line:
        write(file, "line, ")
        assert terminal.rows()[-2:] == ["half a line,", " one"]
        write(file, "and more\n" + "".join(f"row {number}\n" for number in range(20)) + "unfini")
        said[0] = "two " * 30
        rows = terminal.shows(lambda rows: "two" in rows[-1])
        assert rows[:-1] == [*(f"row {number}" for number in range(14, 20)), "unfini"]
        assert len(rows) == ROWS
        with line.lock:
            write(file, "shed")
    assert terminal.rows() == [*(f"row {number}" for number in range(14, 20)), "unfinished"]
    write(file, "\nall rows\nscroll\nagain")
    assert terminal.rows()[-4:] == ["unfinished", "all rows", "scroll", "again"]
    assert len(terminal.rows()) == ROWS


@pytest.mark.parametrize(("columns", "rows"), [(COLUMNS, ROWS + 4), (COLUMNS // 2, ROWS), (COLUMNS + 20, ROWS - 2)])
def test_it_follows_the_terminals_size(terminal: Terminal, file: IO[str], columns: int, rows: int) -> None:
    with StatusLine(file, lambda: "status", tick_s=0.01):
        write(file, "first\nsecond\nth")
        terminal.shows(lambda found: len(found) == ROWS and found[-1] == " status")
        terminal.resize(columns, rows)
        terminal.shows(lambda found: len(found) == rows and found[-1] == " status")
        write(file, "ird")
        assert terminal.rows()[-1] == " status"
        assert terminal.rows().count(" status") == 1
    assert terminal.rows() == ["first", "second", "third"]


def test_a_terminal_of_few_rows_has_none(terminal: Terminal, file: IO[str]) -> None:
    terminal.resize(COLUMNS, 3)
    with StatusLine(file, lambda: "status", tick_s=0.01):
        write(file, "text")
        assert terminal.rows() == ["text"]


def test_what_it_says() -> None:
    now_s = [0.0]
    progress = Progress(clock=lambda: now_s[0])
    assert progress() == "waiting for the first word  (Ctrl-C stops)"
    progress.heard(StreamChunk(link=LinkState.CONNECTING))
    now_s[0] = 1.4
    assert progress() == "connecting to the verifier, 1 s  (Ctrl-C stops)"
    progress.heard(StreamChunk(link=LinkState.LIVE))
    now_s[0] = 3.4
    assert progress() == "waiting for the first word, 2 s  (Ctrl-C stops)"
    for _ in range(3):
        now_s[0] += 0.1
        progress.heard(StreamChunk("ab", (5, 6), ("a", "b"), (False, False), (False, False)))
    assert progress() == "6 tokens, 25 tokens/s"
    progress.heard(StreamChunk(link=LinkState.WAITING))
    now_s[0] += 4.0
    assert progress() == "waiting for the network, 4 s  (Ctrl-C stops)"
    progress.heard(StreamChunk("c", (7,), ("c",), (False,), (False,), link=LinkState.OFFLINE))
    assert progress().startswith("the device alone: 7 tokens")


@contextlib.contextmanager
def chatting(address: str, terminal: Terminal, home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The chat, on this terminal; killed at the end, if it still runs."""
    terminal.resize(80, 20)
    environment = {**os.environ, "HOME": str(home), "XDG_STATE_HOME": str(home)}
    hung_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests under nohup have it ignored, and so would the chat
    try:
        chat = subprocess.Popen(
            command(address),
            stdin=terminal.slave,
            stdout=terminal.slave,
            stderr=terminal.slave,
            env=environment | {"TERM": "xterm-256color", "NO_COLOR": "1"},
            cwd=ROOT,
            process_group=0,  # of this session: nobody could stop it else
        )
    finally:
        signal.signal(signal.SIGHUP, hung_up)
    try:
        yield chat
    finally:
        chat.kill()
        chat.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_whoever_ends_the_chat_in_mid_answer_gets_the_whole_screen_back(
    terminal: Terminal, tmp_path: Path, number: signal.Signals
) -> None:
    engine = GatedEngine()
    with InProcessVerifier(engine) as verifier, chatting(verifier.address, terminal, tmp_path) as chat:
        terminal.shows(lambda rows: any("verifier 127.0.0.1" in row for row in rows))
        terminal.type("hello\r")
        engine.allow(6)
        terminal.shows(lambda rows: words("hello")[:6] in rows and rows[-1].startswith(" 6 tokens"))
        assert terminal.screen.region == (0, 18)
        chat.send_signal(number)
        assert chat.wait(DEADLINE_S) == -number
        assert terminal.rows()[-1] == words("hello")[:6]
        assert terminal.screen.region == (0, 19)
        engine.allow(100_000)


def test_a_silent_link_shows_at_once_a_stop_leaves_no_trace_and_the_words_are_whole(
    terminal: Terminal, tmp_path: Path
) -> None:
    engine = GatedEngine()
    with (
        InProcessVerifier(engine) as verifier,
        Road(verifier.address) as road,
        chatting(road.address, terminal, tmp_path) as chat,
    ):
        terminal.shows(lambda rows: any("verifier 127.0.0.1" in row for row in rows))
        terminal.type("hello\r")
        engine.allow(6)
        terminal.shows(lambda rows: words("hello")[:6] in rows and rows[-1].startswith(" 6 tokens"))
        road.pause()
        terminal.shows(lambda rows: rows[-1].startswith(" waiting for the network"))
        chat.send_signal(signal.SIGTSTP)
        assert os.WIFSTOPPED(os.waitpid(chat.pid, os.WUNTRACED)[1])
        assert terminal.rows()[-1] == words("hello")[:6]  # the shell has the whole screen
        chat.send_signal(signal.SIGCONT)
        terminal.shows(lambda rows: rows[-1].startswith(" waiting for the network"))
        engine.allow(100_000)
        road.resume()
        rows = terminal.shows(lambda rows: "first token" in rows[-1])  # the next question is waited for
        assert words("hello") in rows  # in one piece
        assert not any("waiting for" in row for row in rows)
        terminal.type("\x04")
        assert chat.wait(DEADLINE_S) == 0
