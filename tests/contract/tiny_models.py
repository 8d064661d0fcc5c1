"""Tiny random Llama-shaped models in the real formats, made in seconds: what the drafters' contract is tested on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache

from models.demo.agreement import DIALOGUES
from models.demo.data import train_tokenizer

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


class _WithExplicitCache(torch.nn.Module):
    """A transformers Llama whose cache goes in and comes out as plain tensors."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        cache = DynamicCache(config=self.model.config)
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        before, new = past[0].shape[2], input_ids.shape[1]
        visible = torch.arange(before + new)[None] <= torch.arange(new)[:, None] + before
        out = self.model(
            input_ids=input_ids,
            position_ids=position_ids,
            past_key_values=cache,
            attention_mask=visible[None, None] & (attention_mask[:, None, None, :] > 0),
            use_cache=True,
        )
        layers: list[Any] = cache.layers
        return (out.logits, *(tensor for layer in layers for tensor in (layer.keys, layer.values)))


def save_growing_onnx(source: Path, folder: Path) -> None:
    """The graph of `torch.onnx.export`: plain attention, position ids, logits for every row, no config beside it."""
    model = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="sdpa").eval()
    new, before = 3, 5
    past = [torch.zeros(1, KV_HEADS, before, HIDDEN // HEADS) for _ in range(2 * LAYERS)]
    names = [f"{layer}.{kind}" for layer in range(LAYERS) for kind in ("key", "value")]
    dynamic = torch.export.Dim.DYNAMIC
    folder.mkdir()
    program = torch.onnx.export(
        _WithExplicitCache(model).eval(),
        (
            torch.zeros(1, new, dtype=torch.long),
            torch.ones(1, before + new, dtype=torch.long),
            torch.arange(before, before + new)[None],
            *past,
        ),
        input_names=["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in names)],
        output_names=["logits", *(f"present.{name}" for name in names)],
        dynamic_shapes=({1: dynamic}, {1: dynamic}, {1: dynamic}, tuple({2: dynamic} for _ in past)),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(folder / "model.onnx")
    (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())


def save_recurrent_gguf(path: Path) -> None:
    """A one-layer Mamba: it remembers a state instead of positions, so it cannot drop its last tokens."""
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
        writer.add_tensor(name, rng.normal(0, 0.1, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
