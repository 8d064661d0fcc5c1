"""A model's own text: its tokenizer, its chat template and how its tokens read. For a device that answers alone."""

from __future__ import annotations

import codecs
import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

from outrider_models.errors import ModelFileError
from speculation.prompt import ControlNames, Message, opening_tokens, turn_end
from speculation.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True)
class ModelText:
    """name: for people. tokenize: a text's tokens; whether those that stand before every text are wanted, too.

    template: Jinja's, empty if the model has none. specials: what a template calls bos_token, eos_token and so on.
    end_ids: tokens that end an answer, as far as the model's files name them.
    """

    name: str
    vocabulary: Vocabulary
    tokenize: Callable[[str, bool], list[int]]
    template: str
    specials: Mapping[str, str]
    end_ids: frozenset[int]

    def encode_text(self, text: str) -> list[int]:
        """Tokens of plain text, with those that the tokenizer itself puts before a text."""
        opening = opening_tokens(lambda some: self.tokenize(some, True), self._bare)
        return [*opening, *self._bare(text)]

    def encode_more(self, text: str) -> list[int]:
        """Tokens of a text that goes on."""
        return self._bare(text.removeprefix(" ") if self._spaced else text) if text else []

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of a conversation up to where the assistant speaks. Raises ModelFileError.

        The name of a control token within a message is text.
        """
        pieces = ControlNames(self.vocabulary, self.ends, self.template).pieces(self._render, messages)
        return [token for piece in pieces for token in self._bare(piece)]

    @cached_property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer, with the one that the template ends a turn with."""
        end = turn_end(lambda said: self._render(said, prompt=False), self._bare, self.vocabulary)
        return self.end_ids if end is None else self.end_ids | {end}

    def _bare(self, text: str) -> list[int]:
        return self.tokenize(text, False)

    def _render(self, messages: Sequence[Message], *, prompt: bool = True) -> str:
        """What transformers' `apply_chat_template` makes of it."""
        if not self.template:
            raise ModelFileError(
                f"{self.name} has no chat template, so it cannot answer messages, only continue a text"
            )
        try:
            import jinja2.ext
            import jinja2.sandbox

            from outrider_models.template_tags import GenerationTag
        except ImportError as error:
            raise ModelFileError("chat templates need jinja2: pip install jinja2") from error
        # Templates come with models, from anywhere: they may look and not touch.
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_refuse, strftime_now=_now)
        given = {"messages": [dict(each) for each in messages], "tools": None, "documents": None}
        try:
            template = environment.from_string(self.template)
            return template.render(**self.specials, **given, add_generation_prompt=prompt)
        except Exception as error:  # templates are programs and raise what they like
            raise ModelFileError(f"the chat template of {self.name} refuses these messages: {error}") from error

    def stream(self, before: Sequence[int] = ()) -> SpelledText:
        """A fresh incremental decoder of the text that follows the tokens `before`."""
        stream = SpelledText(self.vocabulary.spellings, spaced=self._spaced)
        for token in before:
            stream.push(token)
        return stream

    @cached_property
    def _spaced(self) -> bool:
        """Whether the tokenizer puts a space before a text that is none of the text's, as SentencePiece does."""
        spellings = self.vocabulary.spellings
        return any(spellings[token].startswith(b" ") for token in self._bare("a")[:1] if token < len(spellings))


class SpelledText:
    """A `speculation.answer_text.TokenStream` over the bytes that tokens stand for."""

    def __init__(self, spellings: Sequence[bytes], *, spaced: bool) -> None:
        """spaced: the first text begins with a space that is none of its own."""
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


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own would write characters of HTML as escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: object) -> NoReturn:
    raise ValueError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().astimezone().strftime(form)
