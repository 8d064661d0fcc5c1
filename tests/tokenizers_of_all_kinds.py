"""Small tokenizers of the four kinds there are, in transformers' form."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "One day a girl named Lily went for a walk.",
    "Zwölf Boxkämpfer äöü ß",
    "数字は好きですか 🐙🐙",
    "a  b\n\n\tc isn't",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
_SPACE = "\u2581"


def _fast(tokenizer: Any, **settings: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2, Llama 3, Qwen."""
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return _fast(tokenizer, eos_token="</s>", bos_token="<s>")


@cache
def byte_fallback() -> PreTrainedTokenizerFast:
    """Llama 2: a space before every text, which decoding takes away; bytes for what has no token."""
    trained: Any = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    trained.train_from_iterator([text for text in TEXTS if text.isascii()] * 4, trainer)
    state = json.loads(trained.to_str())
    model = state["model"]
    old = sorted(model["vocab"], key=model["vocab"].get)
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *old[len(SPECIAL) :]]
    model |= {"vocab": {piece: token for token, piece in enumerate(pieces)}, "byte_fallback": True, "fuse_unk": True}
    state["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    return _fast(Tokenizer.from_str(json.dumps(state)), unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@cache
def unigram() -> PreTrainedTokenizerFast:
    """T5, XLM-R: SentencePiece's other model, without bytes."""
    tokenizer: Any = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return _fast(tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@cache
def word_piece() -> PreTrainedTokenizerFast:
    """BERT: no spaces at all, and marks where a word goes on."""
    tokenizer: Any = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return _fast(tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": byte_level,
    "byte-fallback": byte_fallback,
    "unigram": unigram,
    "word-piece": word_piece,
}


def saved(tokenizer: PreTrainedTokenizerFast, folder: Path, **changes: Any) -> str:
    """The folder of a tokenizer, with changes to its tokenizer.json."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    return str(folder)
