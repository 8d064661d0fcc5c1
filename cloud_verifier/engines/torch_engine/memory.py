"""How many pages of keys and values an engine gets: within what it is given, and no more than it can use."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from cloud_verifier.engines.pages import PAGE_TOKENS
from cloud_verifier.engines.torch_engine.pool import LayerShape, page_bytes

GIB = 1 << 30
GPU_MEMORY_SHARE = 0.9  # of a GPU, weights and all
GPU_STEP_SHARE = 0.05  # of a GPU, kept for what a step computes with
CPU_SHARE = 0.25  # of a machine's memory, for keys and values alone


class MemoryTooSmall(Exception):
    """Not even one sequence of full length would fit. The message says what to do."""


def pages_within(
    model: PreTrainedModel,
    shapes: Sequence[LayerShape],
    context_limit: int,
    max_sequences: int,
    kv_cache_gib: float | None = None,
    gpu_memory_share: float = GPU_MEMORY_SHARE,
) -> int:
    """Pages for keys and values.

    kv_cache_gib: what they may take; None: on a GPU what the weights leave of `gpu_memory_share` of it, on a CPU a
    quarter of the machine's memory. Never more than all sequences need at their longest. Raises MemoryTooSmall.
    """
    one = page_bytes(shapes, model.dtype)
    longest = max(2, -(-context_limit // PAGE_TOKENS))  # two, because the engine is tried with two sequences
    given = _share_of(model.device, gpu_memory_share) if kv_cache_gib is None else int(kv_cache_gib * GIB)
    if given < longest * one:
        raise MemoryTooSmall(
            f"A sequence of {context_limit} tokens takes {longest * one / GIB:.3g} GiB of keys and values, and there "
            f"are {max(0, given) / GIB:.3g} GiB for them; raise --kv-cache-gib or lower --max-model-len."
        )
    return min(given // one, max_sequences * longest)


def _share_of(device: torch.device, gpu_memory_share: float) -> int:
    """Bytes. The model's weights are on the device already."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(total * (gpu_memory_share - GPU_STEP_SHARE)) - (total - free)
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * CPU_SHARE)
