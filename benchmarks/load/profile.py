"""What a step costs on a GPU whose memory is the limit.

A step reads the weights once, whatever it computes, and the keys and values of every session in it. Arithmetic runs
beside the reading, so positions cost nothing until they take longer than the weights:

    step = max(weights_ms, position_ms * positions) + session_ms * sessions

The default figures are no measurement but arithmetic on data sheets, and say so in every result: Qwen3-32B (SpecEdge's
larger target, 2505.17052) in bf16 on two A100-80GB, contexts of 4,096 tokens.

* weights: 65.5 GB at 2 x 2.04 TB/s, of which .7 is reached, all-reduces included: 22.9 ms
* positions: 65.5 GFLOP at 2 x 312 TFLOP/s, of which .5 is reached: .21 ms, so 109 positions take as long as the weights
* sessions: 262,144 bytes of keys and values per token of context (64 layers, 8 heads of 128): .375 ms; 78 sessions of
  1.07 GB fill what weights and workspace leave of the memory
"""

from __future__ import annotations

from dataclasses import dataclass

from netlab.simulator.verifier import StepTime


@dataclass(frozen=True)
class MemoryBound(StepTime):
    """See the module's text. base_ms is for the weights. max_sessions: whose keys and values the memory holds."""

    base_ms: float = 22.9
    per_position_ms: float = 0.21
    per_session_ms: float = 0.375
    max_sessions: int = 78

    def __call__(self, sessions: int, positions: int) -> float:
        """Milliseconds of one step."""
        return max(self.base_ms, self.per_position_ms * positions) + self.per_session_ms * sessions

    @property
    def free_positions(self) -> int:
        """As many as take no longer than the weights: what a step's token budget should be."""
        return int(self.base_ms / self.per_position_ms)
