"""A vocabulary trimmed to the tokens that a target uses (VocabTrim, arXiv 2506.22694).

Kept are the special tokens, the bytes, and the most frequent others. The trimmed tokenizer is an ordinary byte-level
BPE whose every token is one of the target's, so its token strings are the map of ids: a device finds it by itself
(`edge_client.drafters.vocabulary`). A token that is left out is spelled with kept ones. The embedding shrinks with the
head, so a copy costs less memory and less time per guess.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

BYTES = frozenset(pre_tokenizers.ByteLevel.alphabet())


def trimmed_copy(model_folder: Path, folder: Path, size: int, text: str) -> float:
    """Write to `folder` the transformers model of `model_folder` with `size` tokens; returns the share of the tokens
    of `text` that are kept.

    text: like what the target writes; where it is short or empty, the tokens learnt first fill up.

    Raises ValueError for a tokenizer that is no byte-level BPE, and for a size out of range.
    """
    file = model_folder / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"the folder {model_folder} has no tokenizer.json; save it with transformers' fast tokenizer")
    whole: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    model_part = whole["model"]
    if model_part["type"] != "BPE" or model_part.get("byte_fallback") or not BYTES & model_part["vocab"].keys():
        raise ValueError("only the vocabulary of a byte-level BPE can be trimmed; leave --vocabulary out")
    if size >= len(model_part["vocab"]):
        raise ValueError(f"the vocabulary has {len(model_part['vocab'])} tokens, and {size} are no fewer")
    used = Tokenizer.from_str(json.dumps(whole)).encode(text, add_special_tokens=False).ids
    trimmed = trim(whole, used, size)
    kept = rows(whole, trimmed)
    config: Any = AutoConfig.from_pretrained(model_folder)
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder, dtype=config.dtype or torch.float32)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    for layer in (embedding, head):
        if layer.weight.shape[0] != len(kept):  # a tied head is trimmed with the embedding
            layer.weight = torch.nn.Parameter(layer.weight[torch.tensor(kept)].clone(), requires_grad=False)
    if config.tie_word_embeddings:
        head.weight = embedding.weight
    new_id = {old: new for new, old in enumerate(kept)}
    model.config.vocab_size = len(kept)
    for described in (model.config, model.generation_config):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            old = getattr(described, name, None)
            ids = [new_id[one] for one in (old if isinstance(old, list) else [old]) if one in new_id]
            setattr(described, name, ids if isinstance(old, list) else ids[0] if ids else None)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)  # names of special tokens, chat template
    (folder / "tokenizer.json").write_text(json.dumps(trimmed, ensure_ascii=False), encoding="utf-8")
    return sum(one in new_id for one in used) / len(used) if used else 1.0


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
