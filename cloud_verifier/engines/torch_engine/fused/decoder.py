"""A whole forward of a Llama-like decoder in few kernels: for each layer four matrix products and six kernels of ours.

It reads the weights of the transformers model it is made of and computes what that model computes; `load` compares the
two before anyone is served. Models of other families run layer by layer as transformers has them.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from cloud_verifier.engines.torch_engine.attention import StaticAttention
from cloud_verifier.engines.torch_engine.fused.layers import add_norm, gate, rotate_and_write
from cloud_verifier.engines.torch_engine.llama_like import gates, projections
from cloud_verifier.engines.torch_engine.pool import PagePool
from cloud_verifier.engines.torch_engine.static_inputs import Inputs


class FusedDecoder:
    """Logits of static inputs, as the model's own forward gives them up to rounding."""

    @staticmethod
    def merge(model: PreTrainedModel) -> None:
        """Lay the weights that one product reads side by side, in place; the modules' own become views of that."""
        for layer in cast(Any, model.model).layers:
            for modules in (projections(layer), gates(layer)):
                _lay_side_by_side([module.weight for module in modules])
                if modules[0].bias is not None:
                    _lay_side_by_side([module.bias for module in modules])
        if model.device.type == "cuda":
            torch.cuda.empty_cache()  # what was laid elsewhere before

    def __init__(self, model: PreTrainedModel, pool: PagePool) -> None:
        """model: one that `llama_like.why_not` has nothing against, and that `merge` was called for."""
        self._head = cast(Any, model).lm_head
        self._core = cast(Any, model.model)
        self._pool = pool
        self._layers = [_Layer(layer) for layer in self._core.layers]

    def __call__(self, inputs: Inputs, static: StaticAttention) -> torch.Tensor:
        """Logits at `inputs.keep`, [choices, V]. The pool's pages are read and written."""
        core = self._core
        residual = core.embed_tokens(inputs.ids)
        cosines, sines = (part[0].contiguous() for part in core.rotary_emb(residual, inputs.positions[None]))
        states: torch.Tensor | None = None
        for index, layer in enumerate(self._layers):
            paged = self._pool.paged_layer(index)
            before, after = layer.norms
            projected = linear(add_norm(states, residual, before.weight, before.variance_epsilon), *layer.projection)
            query = rotate_and_write(
                projected, cosines, sines, layer.head_norms, layer.head_epsilon, inputs.places, paged.keys, paged.values
            )
            seen = static.kernel.attend(query, paged.keys, paged.values, static.layout, layer.scale, static.split_pages)
            states = layer.leave(seen.flatten(1))
            both = linear(add_norm(states, residual, after.weight, after.variance_epsilon), *layer.gates)
            states = layer.down(gate(both))
        last = core.norm
        out: torch.Tensor = add_norm(states, residual, last.weight, last.variance_epsilon).index_select(0, inputs.keep)
        logits: torch.Tensor = self._head(out)
        return logits


class _Layer:
    """What the forward needs of one layer."""

    def __init__(self, layer: Any) -> None:
        attention = layer.self_attn
        self.norms = layer.input_layernorm, layer.post_attention_layernorm
        self.projection = _merged(projections(layer))
        self.gates = _merged(gates(layer))
        self.leave, self.down = attention.o_proj, layer.mlp.down_proj
        self.scale: float = attention.scaling
        self.head_norms: tuple[torch.Tensor, torch.Tensor] | None = None
        self.head_epsilon = 0.0
        if hasattr(attention, "q_norm"):
            self.head_norms = attention.q_norm.weight, attention.k_norm.weight
            self.head_epsilon = attention.q_norm.variance_epsilon


def _lay_side_by_side(parts: list[torch.Tensor]) -> None:
    whole = torch.cat([part.data for part in parts])
    for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = view


def _merged(modules: list[nn.Linear]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of modules whose parameters `merge` laid side by side: views, not copies."""

    def whole(parts: list[torch.Tensor]) -> torch.Tensor:
        size = [sum(len(part) for part in parts), *parts[0].shape[1:]]
        ends = [part.data_ptr() + part.nbytes for part in parts[:-1]]
        assert ends == [part.data_ptr() for part in parts[1:]], "these weights were not merged"
        return parts[0].data.as_strided(size, parts[0].stride())

    bias = None if modules[0].bias is None else whole([module.bias for module in modules])
    return whole([module.weight for module in modules]), bias
