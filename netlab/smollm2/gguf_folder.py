"""A Llama-shaped GGUF file as a transformers folder: weights dequantized to bf16, tokenizer, chat template.

transformers opens GGUF files itself, but only beside `accelerate`, and takes some seconds to guess how text is cut.
Names, blocks and dequantization are the `gguf` package's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf.quants import dequantize
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTROL = gguf.TokenType.CONTROL
CUTS = {"smollm": True, "gpt-2": False}  # llama.cpp's name of how text is cut: whether each digit stands alone
Array = npt.NDArray[np.float32]
OnTensor = Callable[[int, int], object]


def convert(file: Path, folder: Path, on_tensor: OnTensor) -> None:
    """Write `folder` from the GGUF `file`. on_tensor: told how many tensors are done, of how many.

    Raises ValueError if the file is no Llama with a byte-level BPE, and OSError.
    """
    reader = gguf.GGUFReader(file)

    def said(key: str, otherwise: Any = None) -> Any:
        field = reader.get_field(key)
        return otherwise if field is None else field.contents()

    if said("general.architecture") != "llama":
        raise ValueError(f"{file} holds a model of kind {said('general.architecture')!r}; expected 'llama'")
    tokenizer = _tokenizer(said)
    config = _config(said, tied=not any(tensor.name == "output.weight" for tensor in reader.tensors))
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(_weights(reader, config, on_tensor), assign=True, strict=False)
    model.tie_weights()
    if missing := [name for name, value in model.named_parameters() if value.is_meta]:
        raise ValueError(f"{file} lacks {len(missing)} tensors, among them {missing[0]}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _config(said: Callable[..., Any], *, tied: bool) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(said("tokenizer.ggml.tokens")),
        hidden_size=said("llama.embedding_length"),
        intermediate_size=said("llama.feed_forward_length"),
        num_hidden_layers=said("llama.block_count"),
        num_attention_heads=said("llama.attention.head_count"),
        num_key_value_heads=said("llama.attention.head_count_kv"),
        head_dim=said("llama.rope.dimension_count"),
        max_position_embeddings=said("llama.context_length"),
        rms_norm_eps=said("llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": said("llama.rope.freq_base")},
        tie_word_embeddings=tied,
        bos_token_id=said("tokenizer.ggml.bos_token_id"),
        eos_token_id=said("tokenizer.ggml.eos_token_id"),
        pad_token_id=said("tokenizer.ggml.padding_token_id"),
        dtype="bfloat16",
    )


def _weights(reader: gguf.GGUFReader, config: LlamaConfig, on_tensor: OnTensor) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        theirs = LlamaForCausalLM(config).state_dict()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    wanted = {names.get_name(name, try_suffixes=(".weight",)): name for name in theirs}
    heads: dict[str, Any] = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    weights = {}
    for done, tensor in enumerate(reader.tensors, 1):
        name = wanted.get(tensor.name)
        if name is None:
            raise ValueError(f"the tensor {tensor.name} is none of a Llama's")
        values: Array = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if (projection := name.split(".")[-2]) in heads:
            values = _pairs_to_halves(values, heads[projection])
        weights[name] = torch.from_numpy(values.reshape(theirs[name].shape).copy()).to(torch.bfloat16)
        on_tensor(done, len(reader.tensors))
    return weights


def _pairs_to_halves(weight: Array, heads: int) -> Array:
    """Reorder the rows of each head from (x1, y1, ..., xn, yn) to (x1..xn, y1..yn). Shape [heads * head_size, width].

    llama.cpp rotates neighbouring channels where transformers rotates the two halves.
    """
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, weight.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)


def _tokenizer(said: Callable[..., Any]) -> PreTrainedTokenizerFast:
    kind, cut = said("tokenizer.ggml.model"), said("tokenizer.ggml.pre")
    if kind != "gpt2" or cut not in CUTS:
        raise ValueError(
            f"the tokenizer is {kind!r}, cut as {cut!r}; expected a byte-level BPE ('gpt2') cut as {' or '.join(CUTS)}"
        )
    tokens: list[str] = said("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in said("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(BPE({token: at for at, token in enumerate(tokens)}, merges))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if CUTS[cut] else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [token for token, type_ in zip(tokens, said("tokenizer.ggml.token_type"), strict=True) if type_ == CONTROL]
    )
    special = {
        f"{name}_token": tokens[at]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if (at := said(f"tokenizer.ggml.{key}_token_id")) is not None
    }
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=said("llama.context_length"), **special)
    fast.chat_template = said("tokenizer.chat_template")
    return fast
