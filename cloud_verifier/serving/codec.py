"""The text of a transformers target: its tokenizer and its chat template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cloud_verifier.serving.text_codec import TextError
from speculation.answer_text import TokenStream
from speculation.prompt import ControlNames, Message, opening_tokens, turn_end
from speculation.vocabulary.vocabulary import Vocabulary

# A text is told with a few tokens before it, for what a token spells may depend on whether it is the first of a text.
_BEFORE_TOKENS = 16
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what decoders make of the bytes of a character that is not complete yet
_MOST_UNFINISHED = 3  # bytes of it, each of which may be told as one
_ONE_BY_ONE = {"ByteLevel", "Metaspace", "WordPiece", "Replace", "ByteFallback", "Fuse", "Strip"}  # kinds of decoders


class Codec:
    """A `TextCodec` of a transformers model."""

    def __init__(self, model: str) -> None:
        """Load the tokenizer of a local folder or hub id. Raises TextError."""
        where = "folder" if Path(model).exists() else "hub repository"
        try:
            tokenizer = AutoTokenizer.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise TextError(f"no tokenizer could be loaded from the {where} {model}: {error}") from error
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise TextError(f"{model} has no fast tokenizer (tokenizer.json), which incremental decoding needs")
        self._tokenizer = tokenizer
        self._decode = partial(tokenizer.backend_tokenizer.decode, skip_special_tokens=True)
        written = tokenizer.backend_tokenizer.to_str()
        try:
            parsed = json.loads(written)
            self.vocabulary = Vocabulary.of_tokenizer(parsed)
        except ValueError as error:
            raise TextError(f"the tokenizer in the {where} {model} cannot be used: {error}") from error
        self.fingerprint = self.vocabulary.fingerprint
        # As the tokenizer's files write tokens, which is never shorter than the text that they stand for.
        self.longest_token_bytes = max(len(s.encode("utf-8", "surrogateescape")) for s in self.vocabulary.strings)
        template = json.dumps(tokenizer.chat_template, sort_keys=True, ensure_ascii=False)
        self.words_fingerprint = hashlib.sha256(f"{len(written)} {written}{template}".encode()).hexdigest()
        self._opening = opening_tokens(tokenizer.encode, self._bare)
        end = turn_end(lambda said: self._render(said, prompt=False), self._bare, self.vocabulary)
        self.end_ids = frozenset(token for token in (tokenizer.eos_token_id, end) if isinstance(token, int))
        self._control = ControlNames(self.vocabulary, self.end_ids, template)
        self._misread = self._misread_tokens()
        self._known: dict[int, tuple[str, str]] | None = {} if _one_by_one(parsed.get("decoder")) else None

    def encode_text(self, text: str) -> list[int]:
        return [*self._opening, *self._bare(text)]

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        if self._tokenizer.chat_template is None:
            raise TextError("this model has no chat template; send text or token ids instead of messages")
        try:
            pieces = self._control.pieces(self._render, messages)
        except Exception as error:  # templates are programs and raise what they like
            raise TextError(f"the model's chat template refuses these messages: {error}") from error
        return [token for piece in pieces for token in self._bare(piece)]

    def stream(self, before: Sequence[int] = ()) -> TokenStream:
        stream = _DecodedText(self._decode, self.vocabulary.special, self._misread, self._known)
        start = max(0, len(before) - _BEFORE_TOKENS)
        while start and self._goes_on(before[start]):
            start -= 1
        for token in before[start:]:
            stream.push(token)
        return stream

    def _goes_on(self, token: int) -> bool:
        """Whether a token begins within a character."""
        spellings = self.vocabulary.spellings
        return token < len(spellings) and 0x80 <= (spellings[token] or b"\0")[0] < 0xC0

    def _bare(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _render(self, messages: Sequence[Message], *, prompt: bool = True) -> str:
        said = [dict(message) for message in messages]
        return str(self._tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=prompt))

    def _misread_tokens(self) -> dict[int, str]:
        """Added tokens that the tokenizer's decoder takes for bytes, because their letters belong to its alphabet."""
        spelled = ((token, self.vocabulary.spellings[token].decode()) for token in self.vocabulary.added)
        return {token: text for token, text in spelled if text.strip() not in self._decode([token])}


def _one_by_one(decoder: Mapping[str, Any] | None) -> bool:
    """Whether a token has the same text wherever it stands, except at the beginning of a text."""
    if decoder is None:
        return True
    steps = decoder.get("decoders") or [decoder]
    return all(step.get("type") in _ONE_BY_ONE and not step.get("stop") for step in steps)


class _DecodedText:
    """The text of tokens as the tokenizer's decoder has it, told piece by piece.

    A few tokens are decoded at a time: `_tokens`, of which the first `_settled` have been told completely and are only
    there for what follows; `_told` is what has been told of all of them, `_base` how much of that is of the settled
    ones. So a token costs a constant time.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        silent: Collection[int],
        misread: Mapping[int, str],
        known: dict[int, tuple[str, str]] | None,
    ) -> None:
        """silent: tokens without a text. misread: texts of those that `decode` does not know. known: texts of tokens in
        the middle of a text and at its beginning, which this adds to; None if they depend on the tokens before them."""
        self._decode, self._silent, self._misread, self._known = decode, silent, misread, known
        self._tokens: list[int] = []
        self._settled = self._base = 0
        self._told = ""

    def push(self, token: int) -> str:
        tokens, told = self._tokens, self._told
        settled = 0 < self._settled == len(tokens)
        if settled and self._known is not None and (known := self._known.get(token)) is not None:
            text, self._told = known
            self._tokens = [token]
            self._settled, self._base = 1, len(self._told)
            return text
        if token in self._silent:
            return ""
        if (text := self._misread.get(token, "")) != "":
            rest = self.rest()
            self._settle(self._tokens)
            return rest + text
        tokens.append(token)
        whole = self._decode(tokens)
        if not whole.startswith(told) or whole.endswith(_UNFINISHED):
            return self._push_open()
        self._told = whole
        self._settle(tokens[self._settled :])
        new = whole[len(told) :]
        if settled and self._known is not None and self._tokens == [token]:
            self._known[token] = new, self._told
        return new

    def _push_open(self) -> str:
        """A token has come after which text may change yet, or has changed."""
        whole = self._whole()
        held = min(_MOST_UNFINISHED, len(whole) - len(whole.rstrip(_UNFINISHED)))
        certain = whole[: len(whole) - held]
        new = certain[len(self._told) :]
        self._told = max(self._told, certain, key=len)
        if not held:
            self._settle(self._tokens[self._settled :])
        elif len(self._tokens) > 2 * _BEFORE_TOKENS:  # of bytes that make no character
            self._settle(self._tokens[_BEFORE_TOKENS:])
            self._settled = self._base = 0
            self._told = self._told[: len(self._told) - held]
        return new

    def rest(self) -> str:
        return self._whole()[len(self._told) :]

    def _whole(self) -> str:
        whole = self._decode(self._tokens)
        if not whole.startswith(self._told):
            # Bytes that were a character are none with the byte that follows. What was told stands, and what follows
            # is text of its own.
            del self._tokens[: self._settled]
            whole = self._decode(self._tokens)
            self._told = whole[: len(self._told) - self._base]
            self._settled = self._base = 0
        return whole

    def _settle(self, tokens: list[int]) -> None:
        """All that was told so far is certain; what follows is told after these tokens, if they have a text."""
        if text := self._decode(tokens):
            self._tokens, self._told = tokens, text
            self._settled, self._base = len(tokens), len(text)
