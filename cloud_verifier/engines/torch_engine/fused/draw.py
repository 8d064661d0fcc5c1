"""`sampler.draw` in one pass over the logits: Philox, Gumbel noise and the argmax, without a vocabulary of integers."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-any-return, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl

COUNTERS = 512  # of Philox, each for four tokens, in one program


@triton.jit
def _score(logits, tokens, integers, temperature, size):
    """float64, since words depend on it; -inf past the vocabulary. NaN goes before all others, as argmax has it."""
    logit = tl.load(logits + tokens, mask=tokens < size, other=float("-inf")).to(tl.float64)
    if temperature > 0:
        uniform = (integers.to(tl.float64) + 0.5) * 2.3283064365386963e-10  # 2 ** -32
        logit = logit / temperature - tl.log(-tl.log(uniform))
    return tl.where(logit != logit, float("inf"), logit)  # noqa: PLR0124 (NaN alone is not itself)


@triton.jit
def _draw(logits, seeds, positions, temperatures, scores, tokens, size, parts, COUNTERS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    temperature = tl.load(temperatures + row)
    counter = part * COUNTERS + tl.arange(0, COUNTERS)
    zero = tl.zeros([COUNTERS], tl.uint32)
    position = zero + tl.load(positions + row).to(tl.uint32)
    # Fewer rounds than ten would be another noise.
    a, b, c, d = tl.philox(tl.load(seeds + row), position, counter.to(tl.uint32), zero, zero, 10)
    base = logits + row * size
    best = _score(base, counter * 4, a, temperature, size)
    lane = tl.zeros([COUNTERS], tl.int32)
    other = _score(base, counter * 4 + 1, b, temperature, size)
    lane = tl.where(other > best, 1, lane)
    best = tl.maximum(best, other)
    other = _score(base, counter * 4 + 2, c, temperature, size)
    lane = tl.where(other > best, 2, lane)
    best = tl.maximum(best, other)
    other = _score(base, counter * 4 + 3, d, temperature, size)
    lane = tl.where(other > best, 3, lane)
    best = tl.maximum(best, other)
    top = tl.max(best, 0)
    first = tl.min(tl.where(best == top, counter * 4 + lane, size), 0)  # of equal ones the first, as argmax takes it
    tl.store(scores + row * parts + part, top)
    tl.store(tokens + row * parts + part, first.to(tl.int64))


def draw(
    logits: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor, temperatures: torch.Tensor
) -> torch.Tensor:
    """As `sampler.draw`."""
    rows, size = logits.shape
    parts = triton.cdiv(size, 4 * COUNTERS)
    scores = torch.empty(rows, parts, dtype=torch.float64, device=logits.device)
    tokens = torch.empty(rows, parts, dtype=torch.int64, device=logits.device)
    _draw[(rows, parts)](
        logits.contiguous(), seeds, positions, temperatures, scores, tokens, size, parts, COUNTERS=COUNTERS, num_warps=4
    )
    return tokens.gather(1, scores.argmax(-1, keepdim=True))[:, 0]
