"""A vocabulary trimmed to the tokens that a target uses (VocabTrim, arXiv 2506.22694).

Kept are the special tokens, the bytes, and the most frequent others. The trimmed tokenizer is an ordinary byte-level
BPE whose every token is one of the target's, so its token strings are the map of ids: a device finds it by itself
(`edge_client.drafters.vocabulary`). A token that is left out is spelled with kept ones.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

BYTES = frozenset(pre_tokenizers.ByteLevel.alphabet())


def trim(tokenizer: dict[str, Any], used: Iterable[int], size: int) -> dict[str, Any]:
    """A parsed tokenizer.json with `size` tokens, in the order of their ids. used: ids, as often as they were used.

    Raises ValueError if there is not even room for special tokens and bytes.
    """
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    text_of = {token_id: text for text, token_id in vocabulary.items()}
    special = {added["id"] for added in tokenizer["added_tokens"]}
    kept = special | {vocabulary[text] for text in BYTES if text in vocabulary}
    if size < len(kept):
        raise ValueError(f"a vocabulary of {size} tokens has no room for {len(kept)} special tokens and bytes")
    parts = _parts(tokenizer)
    for token_id, _count in Counter(one for one in used if one in text_of).most_common():
        with_parts = _closed(token_id, parts, kept)
        if len(kept) + len(with_parts) <= size:
            kept |= with_parts
    for token_id in sorted(text_of):  # the lowest ids were merged first and are the most frequent anywhere
        with_parts = _closed(token_id, parts, kept)
        if len(kept) + len(with_parts) <= size:
            kept |= with_parts
    new_id = {old: new for new, old in enumerate(sorted(kept))}
    trimmed: dict[str, Any] = json.loads(json.dumps(tokenizer))
    trimmed["model"]["vocab"] = {text_of[old]: new for old, new in new_id.items()}
    trimmed["model"]["merges"] = [
        merge for merge in map(_pair, tokenizer["model"]["merges"])
        if all(vocabulary.get(text) in new_id for text in (*merge, "".join(merge)))
    ]  # fmt: skip
    for added in trimmed["added_tokens"]:
        added["id"] = new_id[added["id"]]
    return trimmed


def rows(tokenizer: dict[str, Any], trimmed: dict[str, Any]) -> list[int]:
    """The target's id of each trimmed token, in the order of the trimmed ids."""
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    return [vocabulary[text] for text, _ in sorted(trimmed["model"]["vocab"].items(), key=lambda item: item[1])]


def spellings(tokenizer: dict[str, Any], trimmed: dict[str, Any]) -> list[list[int]]:
    """How each of the target's tokens is written with trimmed ones, by the target's id."""
    model = Tokenizer.from_str(json.dumps(trimmed)).model
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    short: dict[str, int] = trimmed["model"]["vocab"]
    found: list[list[int]] = [[] for _ in vocabulary]
    for text, token_id in vocabulary.items():
        found[token_id] = [short[text]] if text in short else [token.id for token in model.tokenize(text)]
    return found


def _pair(merge: str | list[str]) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _parts(tokenizer: dict[str, Any]) -> dict[int, tuple[int, int]]:
    """What each merged token is merged of: without these no text would ever lead to it."""
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    parts: dict[int, tuple[int, int]] = {}
    for first, second in map(_pair, tokenizer["model"]["merges"]):
        parts.setdefault(vocabulary[first + second], (vocabulary[first], vocabulary[second]))
    return parts


def _closed(token_id: int, parts: dict[int, tuple[int, int]], kept: set[int]) -> set[int]:
    """The token with all that it is merged of, but for what is kept already."""
    found: set[int] = set()
    wanted = [token_id]
    while wanted:
        one = wanted.pop()
        if one not in kept and one not in found:
            found.add(one)
            wanted.extend(parts.get(one, ()))
    return found
