"""The forward for GPUs: a few fixed shapes, one copy in, one kernel for attention, tokens drawn on the device.

It computes what the engine's own packed forward computes, and stands beside it to be tested against it. What goes to
the device for a step is one buffer (`standing.fill`), what comes back is the chosen tokens; nothing in between waits
for the host, so all of it can be one CUDA graph (`graphs`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from cloud_verifier.engines.torch_engine.attention import Standing, forward_on
from cloud_verifier.engines.torch_engine.graphs import Result, Steps
from cloud_verifier.engines.torch_engine.kernels import Kernel
from cloud_verifier.engines.torch_engine.layout import Segment
from cloud_verifier.engines.torch_engine.pool import PAGE_TOKENS, PagePool
from cloud_verifier.engines.torch_engine.rows import RowRule
from cloud_verifier.engines.torch_engine.sampler import Row, draw, drawn_plainly
from cloud_verifier.engines.torch_engine.standing import Inputs, StandingLayout, fill, shape_of


@dataclass(frozen=True)
class FastSettings:
    """kernel: attention over pages. cuda_graphs: capture steps. compiled: let torch.compile fuse the drawing."""

    kernel: Kernel
    cuda_graphs: bool = True
    compiled: bool = False


class FastForward:
    """One forward after another over the pool's pages, for a model whose attention is STANDING."""

    def __init__(
        self, model: PreTrainedModel, pool: PagePool, context_limit: int, settings: FastSettings, *, strict: bool
    ) -> None:
        """strict: one shape for all, and each row's sum over what it sees in one piece."""
        self._model, self._pool, self._kernel, self._strict = model, pool, settings.kernel, strict
        self._most_pages = -(-context_limit // PAGE_TOKENS)
        self._takes_rows = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._draw: Callable[..., torch.Tensor] = torch.compile(draw, dynamic=False) if settings.compiled else draw
        self._pinned = model.device.type == "cuda"
        self.steps = Steps(self._run, model.device, graphs=settings.cuda_graphs)
        pool.clear([pool.spare_page])

    def __call__(
        self, segments: list[Segment], tokens: Sequence[int], wanted: Sequence[int], rows: Sequence[Row], rule: RowRule
    ) -> Result:
        """Logits and what was drawn at the wanted rows; both good until the next call.

        segments: of distinct sequences. tokens: theirs, end to end. rows: how to choose at the wanted rows, or none.
        """
        sampled = any(drawn_plainly(row.sampler.params) for row in rows)
        shape = shape_of(segments, len(wanted), sampled, rule, self._most_pages, fixed=self._strict)
        packed = fill(shape, segments, tokens, wanted, rows, self._pool.spare_page, self._pinned)
        result = self.steps(shape, packed)
        return Result(result.logits[: len(wanted)], result.drawn[: len(wanted)])

    def _run(self, inputs: Inputs) -> Result:
        standing = Standing(StandingLayout(inputs), self._kernel, 1 if self._strict else None)
        only = {"logits_to_keep": inputs.keep} if self._takes_rows else {}
        with forward_on(self._pool, standing):
            out = self._model(
                input_ids=inputs.ids[None],
                position_ids=inputs.positions[None],
                past_key_values=self._pool,
                use_cache=True,
                **only,
            )
        logits = out.logits[0] if self._takes_rows else out.logits[0].index_select(0, inputs.keep)
        if not inputs.shape.sampled:
            return Result(logits, logits.argmax(-1))
        return Result(logits, self._draw(logits, inputs.seeds, inputs.at, inputs.temperatures))
