"""Text and tokens: prompts in, words out. The only place of the verifier that knows a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from speculation.answer_text import TokenStream
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
