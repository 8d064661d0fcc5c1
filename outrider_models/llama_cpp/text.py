"""The text of a GGUF model: the tokenizer that llama.cpp made of it, and its chat template."""

from __future__ import annotations

import ctypes
from typing import Any

from outrider_models.errors import ModelFileError
from outrider_models.model_text import ModelText
from speculation.vocabulary.vocabulary import Vocabulary


def read_text(api: Any, model: Any, vocabulary: Vocabulary, name: str) -> ModelText:
    """api: llama.cpp's functions. The model must live as long as what is given."""
    own = api.llama_model_get_vocab(model)

    def tokenize(text: str, opening: bool) -> list[int]:
        encoded = text.encode()
        room = len(encoded) + 8
        ids = (ctypes.c_int * room)()
        count = api.llama_tokenize(own, encoded, len(encoded), ids, room, opening, True)
        if count < 0:
            raise ModelFileError(f"llama.cpp cannot make tokens of a text of {len(encoded)} bytes")
        return list(ids[:count])

    def text_of(token: int) -> str:
        return vocabulary.strings[token] if 0 <= token < len(vocabulary.strings) else ""

    template = api.llama_model_chat_template(model, None)
    ends = frozenset(token for token in vocabulary.special if api.llama_vocab_is_eog(own, token))
    return ModelText(
        name,
        vocabulary,
        tokenize,
        template.decode("utf-8", "replace") if template else "",
        {"bos_token": text_of(api.llama_vocab_bos(own)), "eos_token": text_of(api.llama_vocab_eos(own))},
        ends | {token for token in [api.llama_vocab_eos(own)] if token >= 0},
    )
