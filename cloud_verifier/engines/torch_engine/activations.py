"""Activation functions that treat every element alike, wherever in the tensor it lies.

On a CPU torch runs SiLU, GELU and the sigmoid through one code for whole vectors and through another, which may differ
in the last bit, for what is left at the end of a tensor, or of each thread's share of a large one. Which elements those
are depends on the number of rows. So strict mode hands these functions whole vectors only, and no more at a time than
one thread takes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

VECTOR_ELEMENTS = 64  # the most elements that one turn of torch's vector loop takes: two AVX-512 registers of bfloat16
SHARE_ELEMENTS = 1 << 15  # torch spreads no fewer elements than this over threads
ELEMENTWISE = (nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Mish, nn.ELU, nn.Softplus, nn.Hardswish)

Activation = Callable[[torch.Tensor], torch.Tensor]


def steady(model: nn.Module) -> None:
    """Make the model's activation modules steady, in place; bare functions that a model calls stay as they are."""
    for module in model.modules():
        ours = isinstance(module, ELEMENTWISE) or type(module).__module__ == "transformers.activations"
        if ours and not isinstance(module.forward, SteadyActivation):
            module.forward = SteadyActivation(module.forward)


class SteadyActivation:
    """An elementwise function as before, but in whole vectors and in one thread's share at a time."""

    def __init__(self, function: Activation) -> None:
        self._function = function

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """The function of a tensor of any shape."""
        count = values.numel()
        missing = -count % VECTOR_ELEMENTS
        if not missing and (count <= SHARE_ELEMENTS or torch.get_num_threads() == 1):
            return self._function(values)
        flat = nn.functional.pad(values.reshape(-1), (0, missing))
        results = [self._function(share) for share in flat.split(SHARE_ELEMENTS)]
        return torch.cat(results)[:count].view(values.shape)
