"""A transformers folder as a folder for ONNX Runtime through `torch.onnx.export`.

For families that the model builder of onnxruntime-genai does not know, such as GPT-2.

The graph takes and gives its key-value cache as plain tensors that grow, and gives logits for the last token only.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

SINGLE_FILE_BYTES = 1 << 30
KEPT = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json", "generation_config.json")


def export_traced(model_folder: Path, output: Path, *, all_rows: bool = False) -> None:
    """Write `output` in float32. all_rows: give logits for every token of a call, as many published graphs do.

    What torch's exporter raises goes on.
    """
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    config = model.config
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    new, before = 3, 5  # any two numbers that are not 1
    past = [torch.zeros(1, kv_heads, before, head_size) for _ in range(2 * config.num_hidden_layers)]
    names = [f"{layer}.{kind}" for layer in range(config.num_hidden_layers) for kind in ("key", "value")]
    dynamic = torch.export.Dim.DYNAMIC
    output.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _WithExplicitCache(model, all_rows).eval(),
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
    for old in output.glob("model.onnx*"):
        old.unlink()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    program.save(output / "model.onnx", external_data=weights > SINGLE_FILE_BYTES)
    for name in KEPT:
        if (model_folder / name).is_file():
            shutil.copyfile(model_folder / name, output / name)


class _WithExplicitCache(torch.nn.Module):
    """A transformers model whose cache goes in and comes out as plain tensors."""

    def __init__(self, model: Any, all_rows: bool) -> None:
        super().__init__()
        self.model = model
        self.all_rows = all_rows

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Logits, then keys and values of every layer with the new tokens at the end."""
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
            logits_to_keep=0 if self.all_rows else 1,
        )
        layers: list[Any] = cache.layers
        return (out.logits, *(tensor for layer in layers for tensor in (layer.keys, layer.values)))
