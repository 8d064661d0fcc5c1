"""A Llama-shaped transformers folder with a byte-level BPE tokenizer as one GGUF file for llama.cpp.

llama.cpp rotates neighbouring pairs of a head's channels where transformers rotates the two halves, so the rows of the
query and key projections change places on the way.
"""

from __future__ import annotations

import ctypes
import json
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from llama_cpp import llama_cpp
from transformers import AutoTokenizer, LlamaForCausalLM

from speculation.vocabulary import token_strings

FLOATS = ("f32", "f16")
QUANTIZED = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}
PRE_TOKENIZER = "gpt-2"  # the regular expression of tokenizers' ByteLevel(use_regex=True)
_QUIET = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)  # a line per tensor otherwise

_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def export_gguf(model_folder: Path, output: Path, quantize: str = "q8_0") -> None:
    """Write `output` from the transformers folder `model_folder`. quantize: f32, f16, q8_0 or q4_0.

    Raises ValueError if the model or its tokenizer is of a kind that this file does not know, and RuntimeError if
    llama.cpp cannot quantize it.
    """
    if quantize in FLOATS:
        _write(model_folder, output, quantize)
        return
    with tempfile.TemporaryDirectory() as scratch:
        full = Path(scratch) / "full.gguf"
        _write(model_folder, full, "f32")
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = QUANTIZED[quantize]
        params.nthread = torch.get_num_threads()
        llama_cpp.llama_log_set(_QUIET, ctypes.c_void_p(0))
        status = llama_cpp.llama_model_quantize(str(full).encode(), str(output).encode(), ctypes.byref(params))
    if status != 0:
        raise RuntimeError(f"llama.cpp could not quantize {model_folder} to {quantize}: status {status}")


def _write(model_folder: Path, output: Path, dtype: str) -> None:
    model = LlamaForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    _check(model.config)
    writer = gguf.GGUFWriter(output, "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if dtype == "f16" else gguf.LlamaFileType.ALL_F32)
    _add_shape(writer, model.config, model_folder.name)
    _add_tokenizer(writer, model_folder, model.config.vocab_size)
    for name, tensor in _tensors(model):
        writer.add_tensor(name, tensor.astype(np.float16) if dtype == "f16" and tensor.ndim == 2 else tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _check(config: Any) -> None:
    if config.rope_parameters["rope_type"] != "default":
        raise ValueError(
            f"rotary embeddings of type {config.rope_parameters['rope_type']!r} are not exported; expected 'default'"
        )
    if config.attention_bias or config.mlp_bias:
        raise ValueError(
            "projections with a bias are not exported; expected a Llama without attention_bias and mlp_bias"
        )


def _add_shape(writer: gguf.GGUFWriter, config: Any, name: str) -> None:
    """config: a LlamaConfig, whose optional fields are set once it was loaded."""
    writer.add_name(name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_tokenizer(writer: gguf.GGUFWriter, model_folder: Path, vocabulary_size: int) -> None:
    tokenizer: dict[str, Any] = json.loads((model_folder / "tokenizer.json").read_text(encoding="utf-8"))
    if tokenizer["model"]["type"] != "BPE" or not _is_byte_level(tokenizer["pre_tokenizer"]):
        raise ValueError(f"the tokenizer of {model_folder} is not exported; expected a byte-level BPE")
    tokens = token_strings(tokenizer)
    types = [gguf.TokenType.NORMAL] * len(tokens)
    for added in tokenizer["added_tokens"]:
        types[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    if len(tokens) > vocabulary_size:
        raise ValueError(f"the tokenizer has {len(tokens)} tokens, more than the model's {vocabulary_size}")
    for token_id in range(len(tokens), vocabulary_size):
        tokens.append(f"[PAD{token_id}]")
        types.append(gguf.TokenType.UNUSED)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    described = AutoTokenizer.from_pretrained(model_folder)
    writer.add_bos_token_id(described.bos_token_id)
    writer.add_eos_token_id(described.eos_token_id)
    writer.add_add_bos_token(False)  # the chat template writes it
    if described.chat_template:
        writer.add_chat_template(described.chat_template)


def _is_byte_level(pre_tokenizer: dict[str, Any] | None) -> bool:
    return bool(pre_tokenizer and pre_tokenizer["type"] == "ByteLevel" and pre_tokenizer.get("use_regex", True))


def _tensors(model: LlamaForCausalLM) -> list[tuple[str, npt.NDArray[np.float32]]]:
    """GGUF names and float32 arrays; a tied head has no tensor of its own."""
    config: Any = model.config
    state = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    tensors = [
        ("token_embd.weight", state["model.embed_tokens.weight"]),
        ("output_norm.weight", state["model.norm.weight"]),
    ]
    if not config.tie_word_embeddings:
        tensors.append(("output.weight", state["lm_head.weight"]))
    for layer in range(config.num_hidden_layers):
        for ours, theirs in _LAYER_TENSORS.items():
            tensor = state[f"model.layers.{layer}.{theirs}.weight"]
            if ours in heads:
                tensor = _halves_to_pairs(tensor, heads[ours])
            tensors.append((f"blk.{layer}.{ours}.weight", tensor))
    return tensors


def _halves_to_pairs(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Reorder the rows of each head from (x1..xn, y1..yn) to (x1, y1, ..., xn, yn). Shape [heads * head_size, in]."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, columns)
