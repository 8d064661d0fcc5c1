"""The text of a GGUF target: the tokenizer that llama.cpp made of the file, and its chat template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from cloud_verifier.serving.text_codec import TextError
from outrider_models.errors import ModelFileError
from outrider_models.model_text import ModelText
from speculation.answer_text import TokenStream
from speculation.prompt import Message

# More than the tokens of one character; and enough that there is text among them, by which a stream knows that it does
# not begin one.
_BEFORE_TOKENS = 64


class GgufCodec:
    """A `TextCodec`."""

    def __init__(self, text: ModelText) -> None:
        self._text = text
        self.vocabulary = text.vocabulary
        self.fingerprint = self.vocabulary.fingerprint
        self.end_ids = text.ends
        self.longest_token_bytes = max(len(s.encode("utf-8", "surrogateescape")) for s in self.vocabulary.strings)
        # The file's other parts that make tokens of text are in the engine's fingerprint: it is of the whole file.
        deciding = json.dumps([self.fingerprint, text.template, dict(text.specials)])
        self.words_fingerprint = hashlib.sha256(deciding.encode()).hexdigest()

    def encode_text(self, text: str) -> list[int]:
        return self._text.encode_text(text)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        if not self._text.template:
            raise TextError("this model has no chat template; send text or token ids instead of messages")
        try:
            return self._text.encode_chat(messages)
        except ModelFileError as error:
            raise TextError(str(error)) from error

    def stream(self, before: Sequence[int] = ()) -> TokenStream:
        return self._text.stream(before[-_BEFORE_TOKENS:])
