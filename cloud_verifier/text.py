"""Text and tokens: prompts in, words out, stop strings. The only place of the verifier that knows a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from speculation.vocabulary import Vocabulary


class TextError(ValueError):
    """A prompt that cannot be turned into tokens, or a tokenizer that cannot be used."""


class Codec:
    """A target's tokenizer and chat template."""

    def __init__(self, model: str) -> None:
        """Load the tokenizer of a local folder or hub id. Raises TextError."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(model)
        except (OSError, ValueError) as error:
            where = "folder" if Path(model).exists() else "hub repository"
            raise TextError(f"no tokenizer could be loaded from the {where} {model}: {error}") from error
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise TextError(f"{model} has no fast tokenizer (tokenizer.json), which incremental decoding needs")
        self._tokenizer = tokenizer
        self.vocabulary = Vocabulary(
            tuple(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))),
            frozenset(token_id for token_id, added in tokenizer.added_tokens_decoder.items() if added.special),
        )
        self.fingerprint = self.vocabulary.fingerprint

    def encode_text(self, text: str) -> list[int]:
        """Tokens of plain text, with the special tokens that the tokenizer itself puts before a text."""
        return list(self._tokenizer.encode(text))

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Tokens of a conversation in the target's chat template, up to where the assistant speaks.

        Raises TextError if there is no template or the template refuses the messages.
        """
        if self._tokenizer.chat_template is None:
            raise TextError("this model has no chat template; send text or token ids instead of messages")
        try:
            rendered = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates are programs and raise what they like
            raise TextError(f"the model's chat template refuses these messages: {error}") from error
        return list(self._tokenizer.encode(rendered, add_special_tokens=False))

    def stream(self) -> TokenStream:
        """A fresh incremental decoder."""
        return _FastStream(self._tokenizer)


class TokenStream(Protocol):
    """Turns tokens into text one at a time; text that may still change is held back."""

    def push(self, token: int) -> str:
        """Text that became certain with this token."""

    def rest(self) -> str:
        """Text still held back, such as an unfinished character."""


class _FastStream:
    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._decode = DecodeStream(skip_special_tokens=True)
        self._tokens: list[int] = []
        self._emitted = 0

    def push(self, token: int) -> str:
        self._tokens.append(token)
        try:
            text = self._decode.step(self._backend, token) or ""
        except Exception:
            # A byte that has been given out as a letter turns out to begin no character with what follows, and the
            # decoder takes it back. Words cannot be taken back: what follows is text of its own.
            self._decode = DecodeStream(skip_special_tokens=True)
            self._tokens, self._emitted = [token], 0
            text = self._decode.step(self._backend, token) or ""
        self._emitted += len(text)
        return text

    def rest(self) -> str:
        return str(self._backend.decode(self._tokens, skip_special_tokens=True))[self._emitted :]


class AnswerText:
    """The text of an answer as it grows token by token, and whether a stop string has come.

    pieces[i] is what token i made certain. Text that could be the beginning of a stop string is held back until it is
    not.
    """

    def __init__(self, stream: TokenStream, stop: Sequence[str]) -> None:
        self._stream, self._stop = stream, tuple(stop)
        self._held = ""
        self.pieces: list[str] = []
        self.stopped = False

    def push(self, token: int) -> bool:
        """Take one token; returns whether the answer ends with it because a stop string is complete."""
        self._held += self._stream.push(token)
        hits = [at for at in (self._held.find(s) for s in self._stop) if at >= 0]
        if hits:
            self.pieces.append(self._held[: min(hits)])
            self._held = ""
            self.stopped = True
            return True
        keep = max((_overlap(self._held, s) for s in self._stop), default=0)
        cut = len(self._held) - keep
        self.pieces.append(self._held[:cut])
        self._held = self._held[cut:]
        return False

    def rest(self) -> str:
        """What was held back and belongs to the text after all, once the answer has ended."""
        return "" if self.stopped else self._held + self._stream.rest()


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-n:]):
            return n
    return 0
