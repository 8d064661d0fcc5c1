"""Where the chat's questions come from on a terminal: an editor with a history."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import platformdirs
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent


def editor(
    commands: Sequence[str], toolbar: Callable[[], str], say: Callable[[str], None], file: Path | None = None
) -> Callable[[], str]:
    """Reads a question, which may have several lines. toolbar: what stands at the bottom meanwhile. say: tells a person
    what went wrong beside it.

    file: of the history; default the platform's folder for this user's state.
    """
    bindings = KeyBindings()
    bindings.add("enter")(_submit)
    bindings.add("escape", "enter")(_begin_line)
    bindings.add("c-j")(_begin_line)
    history = KeptHistory(file or platformdirs.user_state_path("outrider") / "chat-history")
    session: PromptSession[str] = PromptSession(
        "> ",
        multiline=True,
        history=history,
        completer=WordCompleter(list(commands), sentence=True),
        complete_while_typing=False,
        key_bindings=bindings,
        bottom_toolbar=toolbar,
        prompt_continuation="  ",
    )

    def read() -> str:
        question = session.prompt()
        if trouble := history.trouble:
            say(trouble)
            history.trouble = ""
        return question

    return read


def _submit(event: KeyPressEvent) -> None:
    event.current_buffer.validate_and_handle()


def _begin_line(event: KeyPressEvent) -> None:
    event.current_buffer.insert_text("\n")


class KeptHistory(FileHistory):
    """On disk, for its owner alone, as long as the disk takes it; questions are asked all the same.

    trouble: what a person should know and was not told yet.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))
        self._file = file
        self.trouble = ""
        self._known = False

    def load_history_strings(self) -> Iterable[str]:
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file.touch(mode=0o600)
            self._file.chmod(0o600)
            super().store_string(string)
        except OSError as error:
            if not self._known:
                self.trouble = f"questions cannot be kept in {self._file} ({error.strerror or error}); go on asking"
            self._known = True
        else:
            self._known = False
