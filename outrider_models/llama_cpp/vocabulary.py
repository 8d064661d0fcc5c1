"""The tokens of a GGUF model, as llama.cpp has read them."""

from __future__ import annotations

from typing import Any

from speculation.vocabulary.vocabulary import Vocabulary


def read_vocabulary(api: Any, vocabulary: Any, size: int) -> Vocabulary:
    """The tokens in id order, without the unused ones at the end that pad the vocabulary to the embedding."""

    def has(token_id: int, attribute: int) -> bool:
        return bool(api.llama_vocab_get_attr(vocabulary, token_id) & attribute)

    while size and has(size - 1, api.LLAMA_TOKEN_ATTR_UNUSED):
        size -= 1
    text = api.llama_vocab_get_text
    strings = [text(vocabulary, token_id).decode("utf-8", "surrogateescape") for token_id in range(size)]
    for token_id, name in enumerate(strings):
        if name == f"[PAD{token_id}]" and has(token_id, api.LLAMA_TOKEN_ATTR_UNUSED):
            strings[token_id] = ""  # no token: GGUF has no other way to leave an id out
    return Vocabulary(
        tuple(strings),
        frozenset(token_id for token_id in range(size) if has(token_id, api.LLAMA_TOKEN_ATTR_CONTROL)),
        api.llama_vocab_bos(vocabulary) if api.llama_vocab_get_add_bos(vocabulary) else None,
        frozenset(token_id for token_id in range(size) if has(token_id, api.LLAMA_TOKEN_ATTR_USER_DEFINED)),
    )
