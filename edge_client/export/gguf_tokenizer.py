"""A tokenizer.json as GGUF metadata: byte-level BPE, SentencePiece-like BPE with byte fallback, and Unigram.

A drafter never reads text with it: token ids travel. It is written so that the file is whole for other programs, and
because the token strings say which vocabulary the model speaks.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import gguf
from transformers import AutoTokenizer

from speculation.vocabulary.vocabulary import token_strings

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "\u2581"
_NO_SCORE = -1e6  # of characters that no merge makes
# llama.cpp knows the regular expressions that cut text by name; parts of the expression tell which one it is.
_CUTS = {
    "llama-bpe": r"\p{N}{1,3}",
    "qwen2": r"|\p{N}|",
}
log = logging.getLogger(__name__)


def add_tokenizer(writer: gguf.GGUFWriter, model_folder: Path, vocabulary_size: int) -> None:
    """Raises ValueError without a tokenizer.json, or for one of another kind or with more tokens than the model."""
    file = model_folder / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"the folder {model_folder} has no tokenizer.json; save it with transformers' fast tokenizer")
    tokenizer: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    tokens = token_strings(tokenizer)
    if len(tokens) > vocabulary_size:
        raise ValueError(f"the tokenizer has {len(tokens)} tokens, more than the model's {vocabulary_size}")
    types, scores = _types(tokenizer, tokens), None
    kind = tokenizer["model"]["type"]
    if kind == "BPE" and tokenizer["model"].get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_add_space_prefix(_prepends_space(tokenizer))
        scores = _scores_of_merges(_merges(tokenizer), tokens)
    elif kind == "BPE" and _is_byte_level(tokenizer.get("pre_tokenizer")):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_cut(tokenizer["pre_tokenizer"]))
        writer.add_token_merges(_merges(tokenizer))
    elif kind == "Unigram":
        writer.add_tokenizer_model("t5")
        writer.add_add_space_prefix(_prepends_space(tokenizer))
        known = dict(tokenizer["model"]["vocab"])
        scores = [known.get(text, 0.0) for text in tokens]
    else:
        raise ValueError(
            f"the tokenizer of {model_folder} is not exported; expected a byte-level BPE, "
            "a BPE with byte fallback, or a Unigram"
        )
    padding = range(len(tokens), vocabulary_size)
    named = [text or f"[PAD{token_id}]" for token_id, text in enumerate(tokens)]
    writer.add_token_list(named + [f"[PAD{token_id}]" for token_id in padding])
    writer.add_token_types(types + [gguf.TokenType.UNUSED for _ in padding])
    if scores is not None:
        writer.add_token_scores(scores + [_NO_SCORE for _ in padding])
    _add_special(writer, model_folder)


def _types(tokenizer: dict[str, Any], tokens: list[str]) -> list[gguf.TokenType]:
    types = [
        gguf.TokenType.BYTE if _BYTE.fullmatch(text) else gguf.TokenType.NORMAL if text else gguf.TokenType.UNUSED
        for text in tokens
    ]
    unknown = tokenizer["model"].get("unk_token")
    if tokenizer["model"]["type"] == "Unigram" and (unknown_id := tokenizer["model"].get("unk_id")) is not None:
        unknown = tokens[unknown_id]
    for added in tokenizer.get("added_tokens") or ():
        types[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    if unknown in tokens:
        types[tokens.index(unknown)] = gguf.TokenType.UNKNOWN
    return types


def _add_special(writer: gguf.GGUFWriter, model_folder: Path) -> None:
    described = AutoTokenizer.from_pretrained(model_folder)
    for add, token_id in (
        (writer.add_bos_token_id, described.bos_token_id),
        (writer.add_eos_token_id, described.eos_token_id),
        (writer.add_unk_token_id, described.unk_token_id),
        (writer.add_pad_token_id, described.pad_token_id),
    ):
        if token_id is not None:
            add(token_id)
    writer.add_add_bos_token(False)  # the chat template writes it
    if isinstance(described.chat_template, str) and described.chat_template:
        writer.add_chat_template(described.chat_template)


def _merges(tokenizer: dict[str, Any]) -> list[str]:
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]


def _scores_of_merges(merges: list[str], tokens: list[str]) -> list[float]:
    """llama.cpp joins the neighbours whose whole has the highest score: the earlier merge."""
    rank = {merge.replace(" ", ""): -float(at) for at, merge in reversed(list(enumerate(merges, 1)))}
    return [rank.get(text, _NO_SCORE) for text in tokens]


def _is_byte_level(pre_tokenizer: dict[str, Any] | None) -> bool:
    if not pre_tokenizer:
        return False
    steps = pre_tokenizer.get("pretokenizers") or [pre_tokenizer]
    return any(step["type"] == "ByteLevel" for step in steps)


def _cut(pre_tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name of how text is cut into words before the merges."""
    steps = pre_tokenizer.get("pretokenizers") or [pre_tokenizer]
    expressions = [step["pattern"].get("Regex", "") for step in steps if step["type"] == "Split"]
    if not expressions and any(step["type"] == "ByteLevel" and step.get("use_regex", True) for step in steps):
        one_by_one = any(step["type"] == "Digits" and step.get("individual_digits") for step in steps)
        return "smollm" if one_by_one else "gpt-2"
    for name, part in _CUTS.items():
        if any(part in expression for expression in expressions):
            return name
    log.warning("llama.cpp has no name that we know for this tokenizer's way of cutting text; the file says 'default'")
    return "default"


def _prepends_space(tokenizer: dict[str, Any]) -> bool:
    """Whether a text begins with a space that is not there, by its normalizer or its pre-tokenizer."""
    normalizer = tokenizer.get("normalizer") or {}
    steps = normalizer.get("normalizers") or [normalizer]
    if any(step.get("type") == "Prepend" and step.get("prepend") == _SPACE for step in steps):
        return True
    pre = tokenizer.get("pre_tokenizer") or {}
    pre_steps = pre.get("pretokenizers") or [pre]
    return any(step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never" for step in pre_steps)
