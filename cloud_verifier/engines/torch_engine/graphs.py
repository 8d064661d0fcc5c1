"""Steps of a fixed shape that are captured once and then replayed, so that a GPU does not wait for the host's launches.

Each shape has its own buffer of inputs. On CUDA a shape is captured when it comes again (a CUDA graph); all graphs
share one pool of memory and one buffer of results, so a result is good until the next step and no longer. Without
graphs, and on a CPU, the function is called; the buffers and that rule are the same, which is what tests on a CPU hold.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch

from cloud_verifier.engines.torch_engine.static_inputs import Inputs, Shape

_log = logging.getLogger(__name__)

MOST_SHAPES = 64  # kept; the one not used for longest goes first
CAPTURED_AT_USE = 2  # many a shape, of prompts above all, comes once
GRAPH_ROWS = 1024  # longer steps keep a GPU busy for longer than their launches take
WARM_UPS = 2  # before a capture: libraries set themselves up on their first calls, which a capture does not allow


class Result(NamedTuple):
    """logits: [choices, V] of a shape. drawn: int64 [choices], see `sampler.draw`. Both on the device."""

    logits: torch.Tensor
    drawn: torch.Tensor


Function = Callable[[Inputs], Result]


class Steps:
    """One function of static inputs, in all the shapes that come."""

    def __init__(self, function: Function, device: torch.device, *, graphs: bool) -> None:
        """graphs: capture on CUDA; elsewhere there is nothing to capture."""
        self._function, self._device = function, device
        self._graphs = graphs and device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if self._graphs else None
        self._side = torch.cuda.Stream(device) if self._graphs else None  # graphs that share memory share a stream
        self._shapes: OrderedDict[Shape, _CapturedStep] = OrderedDict()
        self._results: Result | None = None  # the largest so far: smaller shapes use its beginning
        self.graph_bytes = 0

    @property
    def shapes(self) -> list[Shape]:
        """Those that are kept, the one used last at the end."""
        return list(self._shapes)

    def __call__(self, shape: Shape, packed: torch.Tensor) -> Result:
        """The function's result on these numbers (see `static_inputs.fill`); good until the next call."""
        static = self._shapes.get(shape)
        if static is None:
            buffer = torch.empty_like(packed, device=self._device)
            static = self._shapes[shape] = _CapturedStep(Inputs(shape, buffer))
            if len(self._shapes) > MOST_SHAPES:
                self._shapes.popitem(last=False)
        self._shapes.move_to_end(shape)
        static.inputs.buffer.copy_(packed, non_blocking=True)
        static.uses += 1
        if self._graphs and static.uses == CAPTURED_AT_USE and shape.rows <= GRAPH_ROWS:
            self._capture(static)
        if static.graph is not None and static.result is not None:
            static.graph.replay()
            return static.result
        return self._function(static.inputs)

    def _capture(self, static: _CapturedStep) -> None:
        """Capture one shape; where that fails, capture nothing any more: steps go on without graphs."""
        free = torch.cuda.mem_get_info(self._device)[0]
        graph = torch.cuda.CUDAGraph()
        here, side = torch.cuda.current_stream(self._device), self._side
        assert side is not None
        try:
            side.wait_stream(here)
            # Entered outside of the capture: one that fails does not always leave its stream by itself.
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    result = self._function(static.inputs)
                kept = self._kept(result)
                del result
                # Other threads of the process may use the device meanwhile, for another model, say.
                with torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"):
                    # Where a graph leaves its result itself, no other graph may work: so not there.
                    for place, part in zip(kept, self._function(static.inputs), strict=True):
                        place.copy_(part)
        except RuntimeError as error:  # memory that ran out, or something that a capture does not allow
            self._graphs = False
            _log.warning(
                "CUDA graphs are off from here on (%d captured): %s. Steps of new shapes are slower now. If it is "
                "memory, lower --gpu-memory-share or --max-sessions; --no-cuda-graphs turns graphs off from the start.",
                sum(one.graph is not None for one in self._shapes.values()),
                str(error).partition("\n")[0],
            )
            return
        finally:
            here.wait_stream(
                side
            )  # what was queued there, of a failure too, still reads inputs that the next step writes
        static.graph, static.result = graph, kept
        self.graph_bytes += max(0, free - torch.cuda.mem_get_info(self._device)[0])

    def _kept(self, result: Result) -> Result:
        """Where results of this shape go, in the one buffer for all."""
        rows = len(result.drawn)
        if self._results is None or len(self._results.drawn) < rows:
            self._results = Result(torch.empty_like(result.logits), torch.empty_like(result.drawn))
        return Result(self._results.logits[:rows], self._results.drawn[:rows])


class _CapturedStep:
    """One shape: its inputs, and what was captured of it."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.uses = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result: Result | None = None
