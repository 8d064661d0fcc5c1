"""A whole forward of a Llama-like decoder on a CPU, in few calls: of a small step they are much of the time.

For each layer four products on packed weights, and little between them. It computes what the transformers model
computes; `load` compares the two, and the self-test compares its rows, before anyone is served.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from cloud_verifier.engines.torch_engine import attention
from cloud_verifier.engines.torch_engine.activations import SteadyActivation
from cloud_verifier.engines.torch_engine.layout import Layout
from cloud_verifier.engines.torch_engine.llama_like import gates, projections
from cloud_verifier.engines.torch_engine.packing import Packing
from cloud_verifier.engines.torch_engine.pool import PagePool


def joined(model: PreTrainedModel) -> list[list[nn.Linear]]:
    """The layers of a Llama-like model that read the same input: each group becomes one product."""
    return [group for layer in cast(Any, model.model).layers for group in (projections(layer), gates(layer))]


class CpuDecoder:
    """Logits of packed forwards, as the model's own forward gives them up to rounding."""

    def __init__(self, model: PreTrainedModel, packing: Packing, pool: PagePool, *, strict: bool) -> None:
        """model: one that `llama_like.why_not` has nothing against. packing: of it, with the groups of `joined`."""
        core = cast(Any, model.model)
        self._embed, self._rotary = core.embed_tokens, core.rotary_emb
        self._norm = _RootMeanSquareNorm(core.norm)
        self.layers = [_Layer(layer, packing) for layer in core.layers]
        self.head = cast(Any, model).lm_head.product
        self._pool = pool
        self._attend = attention.strict if strict else attention.plain

    def __call__(self, ids: torch.Tensor, layout: Layout, keep: torch.Tensor) -> torch.Tensor:
        """ids: int64 [1, rows]. Logits at the rows `keep`, [choices, V]. To be called within `attention.forward_on`."""
        states = self._embed(ids)[0]
        cosines, sines = (part[0, :, None] for part in self._rotary(states, layout.positions))
        # The upper half of a head comes to the lower one with its sign turned: x * cos + swapped x * signed sin.
        half = sines.shape[-1] // 2
        signed = torch.cat((-sines[..., :half], sines[..., half:]), dim=-1)
        for index, layer in enumerate(self.layers):
            paged = self._pool.paged_layer(index)
            before, after = layer.norms
            both = layer.projection(_norm(states, before)).view(len(states), -1, layer.width)
            asking, value = both[:, : layer.turned], both[:, layer.turned :]
            if layer.head_norms is not None:
                query, key = asking.split(layer.heads, dim=1)
                asking = torch.cat((_norm(query, layer.head_norms[0]), _norm(key, layer.head_norms[1])), dim=1)
            turned = (asking * cosines).add_(asking.roll(half, -1).mul_(signed))
            query, key = turned.split(layer.heads, dim=1)
            paged.write(key, value)
            seen = self._attend(query.transpose(0, 1), paged, layout, layer.scale)
            states = layer.leave(seen.flatten(1)).add_(states)
            gated, up = layer.gates(_norm(states, after)).chunk(2, dim=1)
            states = layer.down(_silu(gated).mul_(up)).add_(states)
        logits: torch.Tensor = self.head(_norm(states.index_select(0, keep), self._norm))
        return logits


class _RootMeanSquareNorm:
    """One of a model's."""

    def __init__(self, norm: Any) -> None:
        self.weight: torch.Tensor = norm.weight
        self.epsilon = torch.tensor(norm.variance_epsilon)
        self.share = 1 / len(norm.weight)


class _Layer:
    """What the forward needs of one layer. heads: of queries and of keys. turned: of both; the values' come after."""

    def __init__(self, layer: Any, packing: Packing) -> None:
        own = layer.self_attn
        self.norms = _RootMeanSquareNorm(layer.input_layernorm), _RootMeanSquareNorm(layer.post_attention_layernorm)
        self.projection = packing.product(projections(layer)[0])
        self.gates = packing.product(gates(layer)[0])
        self.leave, self.down = own.o_proj.product, layer.mlp.down_proj.product
        self.width = own.head_dim
        self.heads = [linear.out_features // self.width for linear in projections(layer)[:2]]
        self.turned = sum(self.heads)
        self.scale: float = own.scaling
        self.head_norms: tuple[_RootMeanSquareNorm, _RootMeanSquareNorm] | None = None
        if hasattr(own, "q_norm"):
            self.head_norms = _RootMeanSquareNorm(own.q_norm), _RootMeanSquareNorm(own.k_norm)


_silu = SteadyActivation(nn.functional.silu)


def _norm(states: torch.Tensor, norm: _RootMeanSquareNorm) -> torch.Tensor:
    """states: [..., width]. In float32 within, as transformers has it."""
    wide = states.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    inverse = torch.addcmul(norm.epsilon, length, length, value=norm.share).rsqrt_()
    return (wide * inverse).to(states.dtype).mul_(norm.weight)
