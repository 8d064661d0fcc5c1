"""Tiny random Llama-shaped models in the real formats, made in seconds: what the drafters' contract is tested on."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from edge_client.export.gguf_file import export_gguf
from edge_client.export.onnx_traced import export_traced
from models.demo.data import train_tokenizer
from models.demo.dialogues import DIALOGUES

CONTEXT_TOKENS = 640  # more than two chunks of 256
UNUSED_IDS = 21  # embedding rows past the tokenizer's last token, as many published models have
HIDDEN, HEADS, KV_HEADS, LAYERS = 64, 4, 2, 2


def save_transformers(folder: Path) -> None:
    """A model with its tokenizer. Weights are wide, so that the best tokens stand out and rounding cannot swap them."""
    tokenizer = train_tokenizer(DIALOGUES)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + UNUSED_IDS,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=CONTEXT_TOKENS,
        initializer_range=0.15,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def save_gguf(model: PreTrainedModel, path: Path, quantize: str) -> None:
    """A model without text, with a tokenizer that stands for one: some letters, and ids that nothing spells."""
    letters = [(chr(0x61 + i), -float(i)) for i in range(26)]
    unigram = Tokenizer(Unigram([("<s>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters], unk_id=2))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=unigram, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    folder = path.with_suffix("")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    export_gguf(folder, path, quantize)


def save_growing_onnx(source: Path, folder: Path) -> None:
    """The graph of `torch.onnx.export`: plain attention, position ids, logits for every row, no config beside it."""
    export_traced(source, folder, all_rows=True)
    (folder / "config.json").unlink()


def save_hybrid_gguf(path: Path) -> None:
    """An LFM2 of two layers, one with a short convolution and one with attention: a state and positions."""
    rng = np.random.default_rng(1)
    width, inner, heads, kv_heads, head, window = 32, 64, 4, 2, 8, 3
    tokens = ["<s>", "</s>", *(chr(0x100 + i) for i in range(30))]
    writer = gguf.GGUFWriter(path, "lfm2")
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_vocab_size(len(tokens))
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_block_count(2)
    writer.add_head_count(heads)
    writer.add_head_count_kv([0, kv_heads])
    writer.add_rope_freq_base(1e4)
    writer.add_shortconv_l_cache(window)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_merges([f"{tokens[2]} {tokens[3]}"])
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(tokens), width),
        "token_embd_norm.weight": (width,),
        "blk.0.shortconv.conv.weight": (width, window),
        "blk.0.shortconv.in_proj.weight": (3 * width, width),
        "blk.0.shortconv.out_proj.weight": (width, width),
        "blk.1.attn_q.weight": (heads * head, width),
        "blk.1.attn_k.weight": (kv_heads * head, width),
        "blk.1.attn_v.weight": (kv_heads * head, width),
        "blk.1.attn_output.weight": (width, heads * head),
        "blk.1.attn_q_norm.weight": (head,),
        "blk.1.attn_k_norm.weight": (head,),
    }
    for layer in (0, 1):
        shapes[f"blk.{layer}.attn_norm.weight"] = shapes[f"blk.{layer}.ffn_norm.weight"] = (width,)
        shapes[f"blk.{layer}.ffn_gate.weight"] = shapes[f"blk.{layer}.ffn_up.weight"] = (inner, width)
        shapes[f"blk.{layer}.ffn_down.weight"] = (width, inner)
    for name, shape in shapes.items():
        values = rng.normal(0, 0.3, shape) + ("norm" in name)
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def save_recurrent_gguf(path: Path) -> None:
    """A one-layer Mamba: it remembers a state instead of positions, so it cannot just drop its last tokens."""
    rng = np.random.default_rng(0)
    width, inner, state, rank, kernel = 32, 64, 16, 8, 4
    tokens = ["<s>", "</s>", *(chr(0x100 + i) for i in range(30))]
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(1)
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_merges([f"{tokens[2]} {tokens[3]}"])
    shapes = {
        "token_embd.weight": (len(tokens), width),
        "output_norm.weight": (width,),
        "blk.0.attn_norm.weight": (width,),
        "blk.0.ssm_in.weight": (2 * inner, width),
        "blk.0.ssm_conv1d.weight": (inner, kernel),
        "blk.0.ssm_conv1d.bias": (inner,),
        "blk.0.ssm_x.weight": (rank + 2 * state, inner),
        "blk.0.ssm_dt.weight": (inner, rank),
        "blk.0.ssm_dt.bias": (inner,),
        "blk.0.ssm_a": (inner, state),
        "blk.0.ssm_d": (inner,),
        "blk.0.ssm_out.weight": (width, inner),
    }
    for name, shape in shapes.items():
        values = rng.normal(0, 0.1, shape).astype(np.float32)
        writer.add_tensor(name, -np.abs(values) if name.endswith("ssm_a") else values)  # the state has to decay
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
