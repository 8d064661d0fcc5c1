"""What serving needs of a target's tokenizer and chat template, whatever reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from speculation.answer_text import TokenStream
from speculation.prompt import Message
from speculation.vocabulary.vocabulary import Vocabulary


class TextError(ValueError):
    """A prompt that cannot be turned into tokens, or a tokenizer that cannot be used."""


class TextCodec(Protocol):
    """Prompts in, words out.

    fingerprint: of the vocabulary. words_fingerprint: of all that decides which tokens a prompt becomes and which text
    tokens do. end_ids: tokens that end an answer, as far as tokenizer and template tell. longest_token_bytes: no token
    stands for more.
    """

    vocabulary: Vocabulary
    fingerprint: str
    words_fingerprint: str
    end_ids: frozenset[int]
    longest_token_bytes: int

    def encode_text(self, text: str) -> list[int]:
        """Tokens of plain text, with the special tokens that the tokenizer itself puts before a text."""

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of a conversation in the target's chat template, up to where the assistant speaks.

        The name of a control token within a message is text. Raises TextError if there is no template or the template
        refuses the messages.
        """

    def stream(self, before: Sequence[int] = ()) -> TokenStream:
        """A fresh incremental decoder of the text that follows the tokens `before`."""
