"""What is being talked about, and with which settings; saved to a file and loaded from one. No terminal here."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_client.types import RequestOutput
from outrider_models.user_files import replace_file
from speculation.sampling import SamplingParams

FORMAT = 1
MOST_BYTES = 16 << 20
_ROLES = ("user", "assistant")


class ConversationError(ValueError):
    """A file or a setting that cannot be used. The message says why."""


@dataclass(frozen=True)
class Asked:
    """What an answer began with. Whoever goes on with it, or checks it, asks for the same, whatever is set by then."""

    messages: list[dict[str, str]]
    params: SamplingParams
    model: str


@dataclass
class Conversation:
    """turns: messages of user and assistant, oldest first. model: empty for the verifier's. seed: None for random.
    last: the last answer, if it is known in full or how far it came; asked: what it began with."""

    params: SamplingParams
    seed: int | None = None
    model: str = ""
    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)
    last: RequestOutput | None = None
    asked: Asked | None = None

    @property
    def asking(self) -> Asked:
        """What the verifier is asked with now."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return Asked([*system, *self.turns], self.params, self.model)

    def ask(self, question: str) -> None:
        """The user says something."""
        self.turns.append({"role": "user", "content": question})

    def take_back(self) -> None:
        """The question got no answer: as if it had not been asked."""
        if self.turns and self.turns[-1]["role"] == "user":
            self.turns.pop()

    def answered(self, text: str, output: RequestOutput | None, asked: Asked) -> None:
        """The assistant said something; output: None if it was interrupted."""
        self.turns.append({"role": "assistant", "content": text})
        self.last, self.asked = output, asked

    def forget_answer(self) -> bool:
        """Drop the last answer, so that its question can be asked again. False if there is none."""
        if not self.turns or self.turns[-1]["role"] != "assistant":
            return False
        self.turns.pop()
        self.last = self.asked = None
        return True

    def begin_anew(self) -> None:
        """Forget what was said; settings stay."""
        self.turns.clear()
        self.last = self.asked = None

    def set_temperature(self, temperature: float) -> None:
        """Raises SamplingError."""
        self.params = dataclasses.replace(self.params, temperature=temperature)

    def save(self, file: Path) -> None:
        """As JSON, readable by its owner alone. Raises OSError."""
        content = {
            "outrider_chat": FORMAT,
            "model": self.model,
            "system": self.system,
            "temperature": self.params.temperature,
            "seed": self.seed,
            "turns": self.turns,
        }
        replace_file(file, json.dumps(content, indent=1, ensure_ascii=False).encode())

    def load(self, file: Path) -> None:
        """Take over what a file says; nothing is changed if it cannot be used. Raises ConversationError."""
        try:
            with file.open("rb") as opened:
                content = opened.read(MOST_BYTES + 1)
            parsed = json.loads(content) if len(content) <= MOST_BYTES else None
        except OSError as error:
            raise ConversationError(f"cannot load {file}: {error.strerror or error}") from error
        except ValueError as error:
            raise ConversationError(f"{file} is no JSON; /load takes a file that /save wrote") from error
        if not isinstance(parsed, dict) or parsed.get("outrider_chat") != FORMAT:
            raise ConversationError(f"{file} is no conversation that /save of this version wrote")
        turns, seed, temperature = parsed.get("turns"), parsed.get("seed"), parsed.get("temperature")
        if not isinstance(turns, list) or not all(_is_turn(turn) for turn in turns):
            raise ConversationError(f"{file}: turns must be messages with role (user or assistant) and content")
        if seed is not None and not (_is_integer(seed) and 0 <= seed < 2**64):
            raise ConversationError(f"{file}: the seed must be a number from 0 to 2^64 - 1")
        if isinstance(temperature, bool) or not isinstance(temperature, int | float):
            raise ConversationError(f"{file}: the temperature must be a number")
        try:
            self.set_temperature(float(temperature))
        except ValueError as error:
            raise ConversationError(f"{file}: {error}") from error
        self.model, self.system = str(parsed.get("model") or ""), str(parsed.get("system") or "")
        self.seed, self.turns = seed, [dict(turn) for turn in turns]
        self.last = self.asked = None


def _is_turn(turn: Any) -> bool:
    return (
        isinstance(turn, dict)
        and turn.keys() == {"role", "content"}
        and turn["role"] in _ROLES
        and isinstance(turn["content"], str)
    )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
