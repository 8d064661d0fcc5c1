"""Do two models mean the same thing by a token id? The fingerprint of a vocabulary, and how to list one.

Two vocabularies are the same when they give the same token string to every id. The strings are those that the
tokenizer's own files hold (a byte-level BPE writes a space as "Ġ"), because tokenizer.json, GGUF and transformers all
keep them in that form. Merges and pre-tokenization are left out: tokens travel between device and verifier, not text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_LENGTH_BYTES = 4


def fingerprint(token_strings: Sequence[str]) -> str:
    """SHA-256 over the token strings in id order, as ``"sha256:<64 hex digits>"``.

    Each string goes in as the length of its UTF-8 form (4 bytes, little-endian) and then the form itself, so that no
    two lists share their bytes. Bytes that are no UTF-8 come and go as Python's "surrogateescape".
    """
    digest = hashlib.sha256()
    for text in token_strings:
        encoded = text.encode("utf-8", "surrogateescape")
        digest.update(len(encoded).to_bytes(_LENGTH_BYTES, "little") + encoded)
    return f"sha256:{digest.hexdigest()}"


def token_strings(tokenizer: Mapping[str, Any]) -> list[str]:
    """The token strings of a parsed tokenizer.json in id order.

    The vocabulary is a dict from string to id (BPE, WordPiece, WordLevel) or a list of [string, score] (Unigram); added
    tokens come on top and win where both name an id. Raises ValueError with what is wrong: no vocabulary, an unknown
    kind of one, or ids with holes.
    """
    model = tokenizer.get("model")
    if not isinstance(model, Mapping) or "vocab" not in model:
        raise ValueError("this is no tokenizer.json: it has no model.vocab")
    by_id = {token_id: text for text, token_id in _entries(model)}
    for added in tokenizer.get("added_tokens") or ():
        by_id[added["id"]] = added["content"]
    missing = [token_id for token_id in range(len(by_id)) if token_id not in by_id]
    if missing:
        raise ValueError(
            f"the tokenizer's ids have holes: {len(by_id)} tokens, the highest id is {max(by_id)}, "
            f"and id {missing[0]} is the first of {len(missing)} without a token"
        )
    return [by_id[token_id] for token_id in range(len(by_id))]


def _entries(model: Mapping[str, Any]) -> Iterable[tuple[str, int]]:
    vocab = model["vocab"]
    if isinstance(vocab, Mapping):
        return vocab.items()
    if isinstance(vocab, Sequence) and not isinstance(vocab, str):
        return ((piece, token_id) for token_id, (piece, _score) in enumerate(vocab))
    raise ValueError(
        f"a tokenizer model of type {model.get('type')!r} keeps its vocabulary as {type(vocab).__name__}; "
        "expected a dict from token to id (BPE, WordPiece, WordLevel) or a list of [token, score] (Unigram)"
    )
