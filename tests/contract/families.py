"""Tiny random models of the families that devices draft with, each with a tokenizer of its own kind, in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE, Unigram
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from models.demo.data import train_tokenizer
from models.demo.dialogues import DIALOGUES

CONTEXT_TOKENS = 320  # more than one chunk of 256
UNUSED_IDS = 7
SPECIAL = ["<unk>", "<s>", "</s>"]
TEXTS = ["\n".join(message["content"] for message in messages) for messages in DIALOGUES]
_SPACE = "\u2581"
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE: Qwen, GPT-2, Llama 3."""
    return train_tokenizer(DIALOGUES)


def byte_level_after_split() -> PreTrainedTokenizerFast:
    """Byte-level BPE that cuts text by an expression of its own: Qwen."""
    tokenizer = train_tokenizer(DIALOGUES)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["normalizer"] = {"type": "NFC"}
    split = {"type": "Split", "pattern": {"Regex": _QWEN}, "behavior": "Isolated", "invert": False}
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, bytes_only]}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
    )


def with_byte_fallback() -> PreTrainedTokenizerFast:
    """BPE over characters, bytes for the rest: Llama 2, Gemma."""
    trained = Tokenizer(BPE(unk_token=SPECIAL[0]))
    trained.normalizer = normalizers.Replace(" ", _SPACE)
    trained.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False))
    state = json.loads(trained.to_str())
    model = state["model"]
    old = sorted(model["vocab"], key=model["vocab"].get)
    pieces = [*old[: len(SPECIAL)], *(f"<0x{byte:02X}>" for byte in range(256)), *old[len(SPECIAL) :]]
    model["vocab"] = {piece: token_id for token_id, piece in enumerate(pieces)}
    # A converted SentencePiece model has every way to make a piece among its merges, not only the way it was found.
    model["merges"] = [
        [piece[:cut], piece[cut:]]
        for piece in pieces[len(SPECIAL) + 256 :]
        for cut in range(1, len(piece))
        if piece[:cut] in model["vocab"] and piece[cut:] in model["vocab"]
    ]
    model |= {"byte_fallback": True, "fuse_unk": True}
    state["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    }
    return _fast(Tokenizer.from_str(json.dumps(state)))


def unigram() -> PreTrainedTokenizerFast:
    """SentencePiece's other model, as T5 and some Asian language models have it."""
    trained = Tokenizer(Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token=SPECIAL[0], show_progress=False)
    trained.train_from_iterator(TEXTS, trainer)
    return _fast(trained)


def _fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2]
    )


_SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT_TOKENS,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, tuple[Callable[[], PreTrainedTokenizerFast], Callable[..., Any], dict[str, Any]]] = {
    "llama": (
        with_byte_fallback,
        LlamaConfig,
        _SMALL | {"num_key_value_heads": 2, "tie_word_embeddings": False, "rope_parameters": _LLAMA3},
    ),
    "mistral": (
        unigram,
        MistralConfig,
        _SMALL | {"num_key_value_heads": 4, "tie_word_embeddings": False, "sliding_window": None},
    ),
    "qwen2": (byte_level_after_split, Qwen2Config, _SMALL | {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen3": (
        byte_level_after_split,
        Qwen3Config,
        _SMALL | {"num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": False},
    ),
    "gemma": (
        with_byte_fallback,
        GemmaConfig,
        _SMALL | {"num_key_value_heads": 1, "head_dim": 32, "tie_word_embeddings": True, "hidden_activation": None},
    ),
    "gemma3": (
        with_byte_fallback,
        Gemma3TextConfig,
        _SMALL
        | {
            "num_hidden_layers": 6,  # the sixth looks at everything
            "num_key_value_heads": 1,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 16,
            "initializer_range": 0.08,
        },
    ),
    "gpt2": (
        byte_level,
        GPT2Config,
        {
            "n_embd": 64,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": CONTEXT_TOKENS,
            "initializer_range": 0.15,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
}


def save_family(name: str, folder: Path) -> None:
    """A transformers folder with random weights: wide ones, so that the best tokens stand out."""
    make_tokenizer, make_config, settings = FAMILIES[name]
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(7)
    config = make_config(vocab_size=len(tokenizer) + UNUSED_IDS, **settings)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # biases and norms begin as constants, which would hide a wrong one
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
