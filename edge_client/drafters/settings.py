"""How a drafter's model uses the device: one typed home for what both runtimes can be told."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

DEFAULT_CONTEXT_TOKENS = 4096  # the cache is allocated at once, so a model's 128k would cost gigabytes


class Weights(StrEnum):
    """How llama.cpp holds a model's weights: mapped from the file, mapped and kept in memory, or read at once."""

    MAPPED = "mapped"
    LOCKED = "locked"
    READ = "read"


class KvType(StrEnum):
    """Numbers in llama.cpp's key-value cache. 8 and 4 bits need flash attention."""

    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"


class FlashAttention(StrEnum):
    """Whether llama.cpp computes attention in one fused step; auto asks the backend."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


@dataclass(frozen=True)
class DeviceSettings:
    """Everything but the threads. The defaults run anywhere.

    context_tokens: longest sequence; default the model's own limit, at most 4,096 and at most what fits into memory.
    memory_limit_bytes: most that weights and key-value cache may take together; default what is free. offline: never
    ask the hub, take what is in its cache. keeps_conversations: put aside what was evaluated for one conversation when
    another comes, in memory that is left. For llama.cpp: gpu_layers (-1 for all), weights, kv_type, flash_attention.
    For ONNX Runtime: provider, as `edge_client.drafters.onnx.providers` reads it.
    """

    context_tokens: int | None = None
    memory_limit_bytes: int | None = None
    offline: bool = False
    keeps_conversations: bool = False
    gpu_layers: int = 0
    weights: Weights = Weights.MAPPED
    kv_type: KvType = KvType.F16
    flash_attention: FlashAttention = FlashAttention.AUTO
    provider: str = "cpu"
