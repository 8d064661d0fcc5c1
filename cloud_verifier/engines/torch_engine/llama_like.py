"""Models with the layers of a Llama: known by their structure, for forwards that compute them in fewer calls."""

from __future__ import annotations

from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def why_not(model: PreTrainedModel) -> str | None:
    """Why a model's layers cannot run fused, in words; None if they can."""
    if type(model).__name__ not in FAMILIES:
        return f"{type(model).__name__} is none of {', '.join(FAMILIES)}"
    if model.config.hidden_act != "silu":
        return f"its activation is {model.config.hidden_act}"
    core = cast(Any, model.model)
    products = [module for layer in core.layers for module in layer.modules() if "Linear" in type(module).__name__]
    if any(type(module) is not nn.Linear for module in products):
        return "its matrix products are not plain ones"
    sizes = core.rotary_emb.inv_freq.shape[0] * 2, core.layers[0].self_attn.head_dim
    if sizes[0] != sizes[1]:
        return f"only {sizes[0]} of {sizes[1]} numbers of a head are rotated"
    return None


def projections(layer: Any) -> list[nn.Linear]:
    """Of queries, keys and values: one product can compute them all."""
    return [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]


def gates(layer: Any) -> list[nn.Linear]:
    """Of the gate and of what it gates."""
    return [layer.mlp.gate_proj, layer.mlp.up_proj]
