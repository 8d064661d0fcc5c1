"""A model's own text: its tokenizer, its chat template and how its tokens read. For a device that answers alone."""

from __future__ import annotations

import codecs
import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

from edge_client.drafters.base import DrafterError
from speculation.vocabulary import Vocabulary


@dataclass(frozen=True)
class ModelText:
    """name: for people. tokenize: a text's tokens; whether those that stand before every text are wanted, too.

    template: Jinja's, empty if the model has none. specials: what a template calls bos_token, eos_token and so on.
    end_ids: tokens that end an answer.
    """

    name: str
    vocabulary: Vocabulary
    tokenize: Callable[[str, bool], list[int]]
    template: str
    specials: Mapping[str, str]
    end_ids: frozenset[int]

    def encode_text(self, text: str) -> list[int]:
        """Tokens of plain text, with those that the tokenizer itself puts before a text."""
        return self.tokenize(text, True)

    def encode_more(self, text: str) -> list[int]:
        """Tokens of a text that goes on."""
        return self.tokenize(text, False) if text else []

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Tokens of a conversation up to where the assistant speaks. Raises DrafterError."""
        return self.tokenize(self._render(messages), False)

    def _render(self, messages: Sequence[Mapping[str, str]]) -> str:
        if not self.template:
            raise DrafterError(f"{self.name} has no chat template, so it cannot answer messages, only continue a text")
        try:
            import jinja2.sandbox
        except ImportError as error:
            raise DrafterError("chat templates need jinja2: pip install jinja2") from error
        # Templates come with models, from anywhere: they may look and not touch.
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        names = {"raise_exception": _refuse, "strftime_now": _now, "add_generation_prompt": True, **self.specials}
        try:
            return environment.from_string(self.template, names).render(messages=[dict(each) for each in messages])
        except Exception as error:  # templates are programs and raise what they like
            raise DrafterError(f"the chat template of {self.name} refuses these messages: {error}") from error

    def stream(self) -> SpelledText:
        """A fresh incremental decoder."""
        return SpelledText(self.vocabulary.spellings, spaced=self._spaced)

    @cached_property
    def _spaced(self) -> bool:
        """Whether the tokenizer puts a space before a text that is none of the text's, as SentencePiece does."""
        strings = self.vocabulary.strings
        return sum(text.startswith("▁") for text in strings) > sum(text.startswith("Ġ") for text in strings)


class SpelledText:
    """A `speculation.answer_text.TokenStream` over the bytes that tokens stand for."""

    def __init__(self, spellings: Sequence[bytes], *, spaced: bool) -> None:
        self._spellings, self._spaced = spellings, spaced
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Text that became certain with this token; ids past the vocabulary pad it and have none."""
        text = self._decoder.decode(self._spellings[token] if token < len(self._spellings) else b"")
        if text and self._spaced:
            self._spaced = False
            return text.removeprefix(" ")
        return text

    def rest(self) -> str:
        """Text still held back, such as an unfinished character."""
        return self._decoder.decode(b"", final=True)


def template_of(config: Mapping[str, Any]) -> str:
    """The chat template of a parsed tokenizer_config.json: a text, or the one named default of several."""
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {str(one.get("name")): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else ""


def _refuse(message: object) -> NoReturn:
    raise ValueError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().astimezone().strftime(form)
