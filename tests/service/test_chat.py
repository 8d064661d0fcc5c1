"""The chat in the terminal, as a person uses it: commands, colours, Ctrl-C, history, and what comes without network."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from pexpect import fdpexpect
from rich.console import Console

from edge_client.chat.app import Chat
from edge_client.chat.conversation import Conversation, ConversationError
from edge_client.chat.rendering import Renderer
from edge_client.client import EdgeClient, SamplingParams
from edge_client.link.channel import LinkSettings
from edge_client.types import OfflineAnswers
from tests.harness import InProcessVerifier, LetterCodec
from tests.mock_engine import MockEngine, answer
from tests.service.engines import FailingEngine, GatedEngine
from tests.service.links import Road
from tests.service.raw import DEADLINE_S, SEED
from tests.speaking import SpeakingDrafter

ROOT = Path(__file__).resolve().parents[2]
PARAMS = SamplingParams(max_tokens=24)
QUICK = LinkSettings(quiet_s=0.05, waiting_s=0.1, offline_after_s=0.2, reconnect_timeout_s=DEADLINE_S)


def words(*said: str) -> str:
    prompt = [0, *LetterCodec().encode_text("".join(said))]
    return LetterCodec().text(answer(prompt, SEED, 24))


class Talk:
    """A chat whose lines the test knows, on a terminal that it can read."""

    def __init__(self, client: EdgeClient, answers: OfflineAnswers = OfflineAnswers.NEVER, **console: Any) -> None:
        self.screen, self.beside = io.StringIO(), io.StringIO()
        painter = Renderer(Console(file=self.screen, width=200, **console), Console(file=self.beside, width=200))
        self.conversation = Conversation(PARAMS, SEED)
        self._chat = Chat(client, self.conversation, painter, answers)

    def say(self, *lines: str | type[BaseException]) -> str:
        """What the screen shows for these lines; an exception stands for a key."""
        rest = iter(lines)

        def read() -> str:
            line = next(rest, EOFError)
            if isinstance(line, str):
                return line
            raise line

        begin = len(self.screen.getvalue()), len(self.beside.getvalue())
        self._chat.run(read)
        assert next(rest, None) is None, "the chat ended before its lines"
        return self.screen.getvalue()[begin[0] :] + self.beside.getvalue()[begin[1] :]


@pytest.fixture(scope="module")
def verifier() -> Iterator[InProcessVerifier]:
    with InProcessVerifier(MockEngine(max_sequences=16)) as running:
        yield running


@pytest.fixture
def talk(verifier: InProcessVerifier) -> Iterator[Talk]:
    with EdgeClient(verifier.address, SpeakingDrafter(SEED)) as client:
        yield Talk(client)


def test_a_conversation_remembers_and_begins_anew(talk: Talk) -> None:
    first = words("hello")
    assert talk.say("hello", "", "more") == f"{first}\n{words('hello', first, 'more')}\n"
    assert talk.say("/new", "more") == f"{words('more')}\na new conversation\n"


def test_settings_are_shown_and_changed(talk: Talk) -> None:
    said = talk.say(
        *(
            "/temperature 0.5",
            "/temperature",
            "/temperature x",
            "/temperature -1",
            "/seed 7",
            "/seed random",
            "/seed -1",
        ),
        *("/offline ask", "/offline maybe", "/model", "/model other", "hello", "/nothing", "/stats", "/check", "/help"),
    )
    for expected in (
        *("temperature: 0.5", "'x' is not a number", "must lie between", "seed: 7", "seed: random", "2^64"),
        *("alone: ask", "say never, ask or auto", "model: mock", "model: other", "no command /nothing"),
        *("no answer has been completed", "nothing to check", "/help ", "the device alone"),
    ):
        assert expected in said
    assert talk.conversation.turns == []  # there is no model "other", so nobody answered


def test_stats_tell_the_last_answer(talk: Talk) -> None:
    said = talk.say("hello", "/stats")
    assert "24 tokens in" in said
    assert f"seed {SEED}" in said


def test_an_answer_that_broke_off_is_gone_on_with() -> None:
    engine = FailingEngine(1000, at=len(LetterCodec().encode_text("hello")) + 10)
    with InProcessVerifier(engine) as verifier, EdgeClient(verifier.address) as client:
        talk = Talk(client)
        assert "no answer broke off" in talk.say("/continue")
        broken = talk.say("hello")
        assert "/continue" in broken
        assert f"seed {SEED} gives the same words" in broken
        begun = talk.conversation.turns[-1]["content"]
        assert begun
        assert words("hello").startswith(begun)
        assert "/continue" in talk.say("/continue"), "it breaks again"
        assert talk.conversation.turns[-1]["content"] == begun
        engine.sessions = 0
        talk.say("/temperature 0.5", "/seed 3", "/system be brief", "/model other")  # from the next question on
        assert talk.say("/continue") == f"{words('hello').removeprefix(begun)}\n"
        assert engine.temperatures == {PARAMS.temperature}
        assert [turn["content"] for turn in talk.conversation.turns] == ["hello", words("hello")]
        assert "no answer broke off" in talk.say("/continue")


def test_a_retry_is_another_answer_to_the_same_question(talk: Talk) -> None:
    talk.say("hello", "/retry")
    question, retried = talk.conversation.turns
    assert question["content"] == "hello"
    assert retried["content"] != words("hello")
    assert "no answer to try again" in talk.say("/new", "/retry")


def test_saved_and_loaded(talk: Talk, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    said = talk.say("/seed 9", "hello", f"/save {file}", "/new", f"/load {file}", "more", "/save", "/load nowhere")
    assert said.startswith(f"{words('hello')}\n{words('hello', words('hello'), 'more')}\n")
    assert file.stat().st_mode & 0o777 == 0o600
    assert "name a file" in said
    assert "cannot load nowhere" in said


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"outrider_chat": 2}',
        {"turns": [{"role": "system", "content": "x"}]},
        {"turns": [{"role": "user", "content": 3}]},
        {"seed": -1},
        {"seed": True},
        {"temperature": "hot"},
        {"temperature": -2.0},
    ],
)
def test_a_file_that_is_no_conversation_changes_nothing(tmp_path: Path, content: str | dict[str, Any]) -> None:
    file = tmp_path / "talk.json"
    good: dict[str, Any] = {"outrider_chat": 1, "turns": [], "seed": 1, "temperature": 0.5, "model": "m", "system": "s"}
    file.write_text(content if isinstance(content, str) else json.dumps(good | content))
    conversation = Conversation(PARAMS, SEED)
    with pytest.raises(ConversationError):
        conversation.load(file)
    assert conversation == Conversation(PARAMS, SEED)


def test_colours_say_who_wrote_and_no_color_takes_them_away(
    verifier: InProcessVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EdgeClient(verifier.address) as client:
        monkeypatch.delenv("NO_COLOR", raising=False)
        assert "\x1b[" in Talk(client, force_terminal=True, color_system="standard").say("/offline")
        monkeypatch.setenv("NO_COLOR", "1")
        plain = Talk(client, force_terminal=True).say("hello")
    assert "\x1b[3" not in plain
    assert words("hello") in plain


def test_what_could_move_the_cursor_is_left_out() -> None:
    file = io.StringIO()
    painter = Renderer(Console(file=file), Console(file=file))
    painter.write("a\x1b]0;title\x07b\x9b2Jc d\r\ne [bold]f[/bold]")
    assert file.getvalue() == "a]0;titleb2Jc d\ne [bold]f[/bold]"


def test_ctrl_c_twice_or_the_end_leaves(talk: Talk) -> None:
    assert "once more" in talk.say(KeyboardInterrupt, KeyboardInterrupt)
    assert "once more" in talk.say(KeyboardInterrupt, "/seed", KeyboardInterrupt, KeyboardInterrupt)
    talk.say("/quit")


def test_the_device_alone_is_marked_and_checked_afterwards() -> None:
    engine = GatedEngine()
    engine.allow(100_000)
    with InProcessVerifier(engine) as verifier, Road(verifier.address) as road:
        drafter = SpeakingDrafter(SEED, wrong_at=10)
        with EdgeClient(road.address, drafter, link=QUICK) as client:
            talk = Talk(client, OfflineAnswers.AUTO)
            road.refuse(True)
            said = talk.say("hello")
            assert "device's own words" in said
            assert "/check" in said
            road.refuse(False)
            checked = talk.say("/system be brief", "/model other", "/check", "/check")
    assert "departs from the device's words" in checked
    assert "nothing to check" in checked
    assert talk.conversation.turns[-1]["content"] == words("hello")


# -- the real thing ----------------------------------------------------------------------------------------------------


READY = "\x1b[?2004h"  # the editor takes pasted text: it waits for a question


def command(address: str, *more: str) -> list[str]:
    settings = ("--max-tokens", "24", "--seed", str(SEED), *more)
    return [sys.executable, "-m", "edge_client", "chat", "--verifier", address, *settings]


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "HOME": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "TERM": "xterm-256color",
        "PROMPT_TOOLKIT_NO_CPR": "1",
    }


class OnATerminal:
    """The command on a pseudo-terminal. Not by pexpect.spawn, which forks: gRPC's threads do not like that."""

    def __init__(self, address: str, home: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (40, 160))
        self.process = subprocess.Popen(
            command(address), stdin=slave, stdout=slave, stderr=slave, env=home, cwd=ROOT, start_new_session=True
        )
        os.close(slave)
        self._screen = fdpexpect.fdspawn(self._master, encoding="utf-8", timeout=DEADLINE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def shows(self, text: str) -> None:
        self._screen.expect_exact(text)

    def type(self, keys: str) -> None:
        self.shows(READY)
        self._screen.send(keys)


def test_on_a_terminal(verifier: InProcessVerifier, home: dict[str, str], tmp_path: Path) -> None:
    with OnATerminal(verifier.address, home) as talk:
        talk.type("hello\r")
        talk.shows("hello")
        talk.shows(words("hello")[:8])
        talk.type("/system one\x1b\rtwo\r")
        talk.shows("system message: one")
        talk.type("\x03")
        talk.shows("once more")
        talk.type("\x03")
        assert talk.process.wait(DEADLINE_S) == 0
    history = tmp_path / "state" / "outrider" / "chat-history"
    assert "+hello\n" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600


def test_ctrl_c_stops_an_answer_and_not_the_chat(home: dict[str, str]) -> None:
    engine = GatedEngine()
    with InProcessVerifier(engine) as verifier, OnATerminal(verifier.address, home) as talk:
        talk.type("hello\r")
        engine.allow(3)
        talk.shows(words("hello")[:2])
        talk.process.send_signal(signal.SIGINT)
        engine.allow(2)  # Python may swallow an interrupt: then the next word is where it is noticed
        talk.shows("stopped")
        engine.allow(100_000)
        talk.type("\x04")
        assert talk.process.wait(DEADLINE_S) == 0


def test_through_a_pipe(verifier: InProcessVerifier, home: dict[str, str]) -> None:
    done = subprocess.run(
        command(verifier.address),
        input="hello\n/seed\n\nmore\n",
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env=home,
        check=False,
    )
    first = words("hello")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{first}\n{words('hello', first, 'more')}\n"
    assert f"seed: {SEED}" in done.stderr
