"""Attention over the pool of pages in a shape that stays: one kernel for all sequences of a step.

`gathered` is the definition, in plain torch: it copies what each sequence sees, which costs memory and time, and runs
anywhere. `varlen` is torch's own interface to Flash Attention, which reads the pages where they lie. Which of them an
engine uses is found by trying (`usable`): whether Flash Attention takes a table of pages depends on the GPU and on what
is installed beside torch.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from cloud_verifier.engines.torch_engine.layout import Segment
from cloud_verifier.engines.torch_engine.pool import PAGE_TOKENS, LayerShape
from cloud_verifier.engines.torch_engine.rows import RowRule
from cloud_verifier.engines.torch_engine.standing import Inputs, StandingLayout, fill, shape_of

_log = logging.getLogger(__name__)

# query [rows, heads, width], keys and values [pages, PAGE_TOKENS, heads, width], layout, scale, splits (1: strict)
Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, StandingLayout, float | None, int | None], torch.Tensor]
TRIAL_TOLERANCE = 0.02  # of the values' spread, in bfloat16
FLASH = {9: ("FA3", "flash_attn_interface"), 10: ("FA4", "flash_attn.cute")}  # by compute capability: what takes tables


def gathered(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layout: StandingLayout,
    scale: float | None,
    _splits: int | None,
) -> torch.Tensor:
    """Returns [rows, heads, value width]."""
    inputs, shape = layout.inputs, layout.inputs.shape
    pages = inputs.table.flatten()

    def seen(states: torch.Tensor) -> torch.Tensor:
        found = states.index_select(0, pages)
        return found.view(shape.sequences, shape.pages * PAGE_TOKENS, *states.shape[2:]).transpose(1, 2)

    heads, width = query.shape[1:]
    grid = query.index_select(0, inputs.row_of).view(shape.sequences, shape.width, heads, width).transpose(1, 2)
    grouped = heads != keys.shape[2]
    out = scaled_dot_product_attention(
        grid, seen(keys), seen(values), layout.mask, scale=scale, enable_gqa=grouped
    ).transpose(1, 2)
    return out.reshape(-1, heads, values.shape[3]).index_select(0, inputs.slots)


def varlen(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layout: StandingLayout,
    scale: float | None,
    splits: int | None,
) -> torch.Tensor:
    """As `gathered`. CUDA only."""
    shape = layout.inputs.shape
    out = varlen_attn(
        query,
        keys,
        values,
        layout.ends,
        None,
        shape.width,
        shape.pages * PAGE_TOKENS,
        scale=scale,
        window_size=(-1, 0),  # causal, counted from the last position that a sequence sees
        enable_gqa=query.shape[1] != keys.shape[2],
        seqused_k=layout.seen,
        block_table=layout.table,
        num_splits=splits,
    )
    assert isinstance(out, torch.Tensor)
    return out.masked_fill(layout.padding, 0.0)  # rows of no sequence are left as they were found in memory


def usable(shape: LayerShape, query_heads: int, dtype: torch.dtype, device: torch.device) -> tuple[Kernel | None, str]:
    """A kernel that takes pages on this device and agrees with `gathered` there; and in a sentence, why or why not."""
    if device.type != "cuda":
        return None, "Flash Attention over pages is for GPUs."
    if shape.key_width != shape.value_width:
        return None, "Flash Attention over pages needs keys and values of one width."
    _activate_flash(device)
    try:
        difference = disagreement(varlen, shape, query_heads, dtype, device)
    except Exception as error:  # whatever a kernel that does not fit says
        return None, f"Flash Attention does not take a table of pages here: {type(error).__name__}: {error}"
    if not difference <= TRIAL_TOLERANCE:
        return None, f"Flash Attention over pages differs here by {difference:.3g} from its definition."
    return varlen, "Flash Attention reads the pages where they lie."


def _activate_flash(device: torch.device) -> None:
    """Let torch use the Flash Attention that takes tables of pages, where it is installed."""
    from torch.nn.attention import activate_flash_attention_impl, current_flash_attention_impl

    name, module = FLASH.get(torch.cuda.get_device_capability(device)[0], ("", ""))
    if not name or current_flash_attention_impl() == name or importlib.util.find_spec(module.split(".")[0]) is None:
        return
    try:
        activate_flash_attention_impl(name)
    except Exception as error:  # it is installed, but not in a form that torch knows
        _log.warning("%s cannot be used: %s", name, error)


@torch.inference_mode()
def disagreement(
    kernel: Kernel, shape: LayerShape, query_heads: int, dtype: torch.dtype, device: torch.device
) -> float:
    """The largest difference of a kernel from `gathered` on a small step, as a share of the values' spread."""
    torch.manual_seed(11)
    segments = [Segment([3, 1], 60, 9), Segment([0], 12, 1), Segment([2, 5, 4], 130, 4)]
    form = shape_of(segments, 0, False, RowRule(1, 64), 4, fixed=False)
    layout = StandingLayout(Inputs(form, fill(form, segments, [0] * 14, [], [], 6, False).to(device)))

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, dtype=torch.float32).to(device=device, dtype=dtype)

    query = random(form.rows, query_heads, shape.key_width)
    keys, values = (random(7, PAGE_TOKENS, shape.heads, shape.key_width) for _ in range(2))
    arguments: tuple[Any, ...] = (query, keys, values, layout, None, None)
    expected, got = (one(*arguments)[:14].float().cpu() for one in (gathered, kernel))
    difference = (got - expected).abs() / expected.std()
    return float(torch.nan_to_num(difference, nan=torch.inf).max())
