"""Where the chat's questions come from on a terminal: an editor with a history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import platformdirs
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent


def editor(commands: Sequence[str], toolbar: Callable[[], str], file: Path | None = None) -> Callable[[], str]:
    """Reads a question, which may have several lines. toolbar: what stands at the bottom meanwhile.

    file: of the history; default the platform's folder for this user's state.
    """
    bindings = KeyBindings()
    bindings.add("enter")(_submit)
    bindings.add("escape", "enter")(_begin_line)
    bindings.add("c-j")(_begin_line)
    session: PromptSession[str] = PromptSession(
        "> ",
        multiline=True,
        history=_history(file or platformdirs.user_state_path("outrider") / "chat-history"),
        completer=WordCompleter(list(commands), sentence=True),
        complete_while_typing=False,
        key_bindings=bindings,
        bottom_toolbar=toolbar,
        prompt_continuation="  ",
    )
    return session.prompt


def _submit(event: KeyPressEvent) -> None:
    event.current_buffer.validate_and_handle()


def _begin_line(event: KeyPressEvent) -> None:
    event.current_buffer.insert_text("\n")


def _history(file: Path) -> History:
    """What was asked is nobody else's business: the file is its owner's alone."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(file))
