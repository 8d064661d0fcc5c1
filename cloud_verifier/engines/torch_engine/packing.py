"""A model's linear layers on packed weights, in place and so that it can be undone.

What is packed is let go of at once, so that a model never lies in memory twice; only what is shared with something
that is no product stays too, such as an embedding that is also the head: it is read row by row.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from cloud_verifier.engines.torch_engine.products import PackedLinear, Product, linears, made

Place = tuple[nn.Module, str, nn.Linear]


class Packing:
    """All plain linear layers of a model on packed weights.

    A group of several layers is one product; these layers have no weight any more, and whoever runs the model must ask
    `product` instead of them. A layer that is in no group is replaced by a `PackedLinear`.
    """

    def __init__(self, model: nn.Module, kind: str, groups: Sequence[Sequence[nn.Linear]] = ()) -> None:
        """kind: see `products.KINDS`. groups: of layers that read the same input."""
        places = {id(linear): (parent, name, linear) for parent, name, linear in linears(model)}
        self._kept = {
            id(parameter): parameter
            for module in model.modules()
            if not isinstance(module, nn.Linear)
            for parameter in module.parameters(recurse=False)
        }
        whole = [[places.pop(id(linear)) for linear in group] for group in groups]
        self._groups: list[list[Place]] = [*whole, *([place] for place in places.values())]
        self._shared: dict[int, nn.Parameter] = {}
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # torch lets go of the interpreter lock
            self._products = list(pool.map(lambda group: self._pack(group, kind), self._groups))
        del self._kept
        self._product_of = {
            id(group[0][2]): product for group, product in zip(self._groups, self._products, strict=True)
        }

    @staticmethod
    def leaves_products(model: nn.Module) -> bool:
        """Whether a packed model has products still that no packing knows: weights of other layers than linear ones."""
        return any(
            parameter.ndim > 1 and not isinstance(module, nn.Embedding) and type(module) is not nn.Linear
            for module in model.modules()
            for parameter in module.parameters(recurse=False)
        )

    def product(self, linear: nn.Linear) -> Product:
        """Of the group whose first layer this is."""
        return self._product_of[id(linear)]

    def undo(self) -> None:
        """Give every layer its weight back."""
        for group, product in zip(self._groups, self._products, strict=True):
            parts = product.weight.split([linear.out_features for _, _, linear in group])
            for (parent, name, linear), part in zip(group, parts, strict=True):
                shared = self._shared.get(id(linear))
                own = nn.Parameter(part.clone(), requires_grad=False) if shared is None else shared
                linear.register_parameter("weight", own)
                setattr(parent, name, linear)

    def _pack(self, group: list[Place], kind: str) -> Product:
        layers = [linear for _, _, linear in group]
        with torch.inference_mode():
            product = made(kind, [linear.weight for linear in layers], [linear.bias for linear in layers])
        for parent, name, linear in group:
            if id(linear.weight) in self._kept:
                self._shared[id(linear)] = self._kept[id(linear.weight)]
            none = linear.weight.new_empty(0, linear.in_features)
            linear.register_parameter("weight", nn.Parameter(none, requires_grad=False))
            if len(group) == 1:
                setattr(parent, name, PackedLinear(product, linear.in_features, linear.out_features, linear.bias))
        return product
