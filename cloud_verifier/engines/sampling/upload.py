"""Numbers of the host on their way to the device."""

from __future__ import annotations

from typing import Any

import torch


def upload(values: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of these numbers on the device. The host does not wait for a GPU.

    From pageable memory it would: torch then copies only when all work before is done. Pinned memory is kept by torch's
    allocator until the copy is over.
    """
    held = torch.as_tensor(values, dtype=dtype)
    if device.type != "cuda":
        return held.to(device)
    return held.pin_memory().to(device, non_blocking=True)
