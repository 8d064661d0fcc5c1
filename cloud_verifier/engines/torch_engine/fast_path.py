"""What the fast forward is made of on this device: found by trying, and said in plain sentences.

Triton comes with every CUDA build of torch, Flash Attention over pages does not, and neither is known to work before it
has run. So each is tried on a small step and held against its definition in plain torch; what fails, or differs, is not
used, and the log says why.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from cloud_verifier.engines.pages import PAGE_TOKENS
from cloud_verifier.engines.sampling import sampler
from cloud_verifier.engines.torch_engine.kernels import FLASH, Kernel, gathered
from cloud_verifier.engines.torch_engine.layout import Segment
from cloud_verifier.engines.torch_engine.llama_like import why_not
from cloud_verifier.engines.torch_engine.pool import LayerShape
from cloud_verifier.engines.torch_engine.row_rules import RowRule
from cloud_verifier.engines.torch_engine.static_inputs import Inputs, StaticLayout, fill, shape_of

if TYPE_CHECKING:
    from cloud_verifier.engines.torch_engine.fused.decoder import FusedDecoder  # imports Triton

_log = logging.getLogger(__name__)

# Of the values' spread. bfloat16 alone rounds the largest of so many values by 0.02, and a kernel may round twice.
TRIAL_TOLERANCE = 0.06
# By compute capability: the Flash Attention that takes tables of pages, and the package that torch has it from.
FLASH_PACKAGES = {9: ("FA3", "flash_attn_interface"), 10: ("FA4", "flash_attn.cute")}
TRIAL_PAGES = 6
TRIALS = (
    [Segment([3, 1], 60, 9), Segment([0], 12, 1), Segment([2, 5, 4], 130, 4)],
    # One row of each, far on: here kernels cut what is seen into splits, and torch's Flash Attention 2 has lost rows.
    [Segment([page % TRIAL_PAGES for page in range(40)], 64 * n - 3, 1) for n in (40, 17, 33)],
)

Draw = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Parts:
    """kernel: attention over pages. draw: as `sampler.draw`. decoder: the fused forward; None: transformers'."""

    kernel: Kernel
    draw: Draw = sampler.draw
    decoder: type[FusedDecoder] | None = None

    @property
    def name(self) -> str:
        """For fingerprints."""
        return self.kernel.name + (", fused layers" if self.decoder is not None else "")


def fused_parts(*, layers: bool) -> Parts:
    """All of our own kernels, untried. Raises ImportError where there is no Triton."""
    from cloud_verifier.engines.torch_engine.fused.attention import fused
    from cloud_verifier.engines.torch_engine.fused.decoder import FusedDecoder
    from cloud_verifier.engines.torch_engine.fused.draw import draw

    return Parts(Kernel("fused attention", fused, steady=True), draw, FusedDecoder if layers else None)


def find_parts(model: PreTrainedModel, shapes: Sequence[LayerShape], *, strict: bool) -> Parts | None:
    """What this model can use on its device; None for the simple forward. The log says which and why."""
    device = model.device
    if device.type != "cuda":
        return None
    if len(set(shapes)) > 1:
        _log.info("Steps run in the simple forward: the layers of this model differ in what they cache.")
        return None
    heads = model.config.get_text_config().num_attention_heads
    refused: list[str] = []
    with torch.cuda.device(device):
        own = _own_parts(model, shapes[0], heads, refused)
        # Strict mode has Flash Attention sum up what a row sees in one piece, which a long sequence alone is slow with.
        flash = None if strict and own is not None else _flash(shapes[0], heads, model.dtype, device, refused)
    if own is not None:
        parts = own if flash is None else Parts(flash, own.draw, own.decoder)
    elif flash is not None:
        parts = Parts(flash)
    else:
        _log.info("Steps run in the simple forward. %s", " ".join(refused))
        return None
    _log.info("Steps run in fixed shapes with %s. %s", parts.name, " ".join(refused))
    return parts


def _own_parts(model: PreTrainedModel, shape: LayerShape, heads: int, refused: list[str]) -> Parts | None:
    """Our own kernels, as far as they work here; what does not is said in `refused`."""
    if model.dtype == torch.float32:
        refused.append("Our own kernels are for bfloat16 and float16.")
        return None
    try:
        parts = fused_parts(layers=False)
        difference = disagreement(parts.kernel, shape, heads, model.dtype, model.device)
        drawn = draws_alike(parts.draw, model.dtype, model.device)
    except Exception as error:  # whatever a compiler or a device says
        refused.append(f"Our own kernels do not run here ({_said(error)}).")
        return None
    if not difference <= TRIAL_TOLERANCE:
        refused.append(f"Our own attention differs here by {difference:.3g} from its definition.")
        return None
    if not drawn:
        refused.append("Our own drawing of tokens differs here from its definition.")
        parts = Parts(parts.kernel)
    from cloud_verifier.engines.torch_engine.fused import decoder

    if (reason := why_not(model)) is not None:
        refused.append(f"Layers run as transformers has them: {reason}.")
        return parts
    return Parts(parts.kernel, parts.draw, decoder.FusedDecoder)


def _flash(
    shape: LayerShape, heads: int, dtype: torch.dtype, device: torch.device, refused: list[str]
) -> Kernel | None:
    if shape.key_width != shape.value_width:
        refused.append("Flash Attention needs keys and values of one width.")
        return None
    try:
        _activate_flash(device)
        difference = disagreement(FLASH, shape, heads, dtype, device)
    except Exception as error:
        refused.append(f"Flash Attention does not take a table of pages here ({_said(error)}).")
        return None
    if not difference <= TRIAL_TOLERANCE:
        refused.append(f"Flash Attention over pages differs here by {difference:.3g} from its definition.")
        return None
    return FLASH


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def _activate_flash(device: torch.device) -> None:
    """Let torch use the Flash Attention that takes tables of pages, where it is installed."""
    from torch.nn.attention import activate_flash_attention_impl, current_flash_attention_impl

    name, module = FLASH_PACKAGES.get(torch.cuda.get_device_capability(device)[0], ("", ""))
    if not name or current_flash_attention_impl() == name or importlib.util.find_spec(module.split(".")[0]) is None:
        return
    activate_flash_attention_impl(name)


@torch.inference_mode()
def disagreement(
    kernel: Kernel, shape: LayerShape, query_heads: int, dtype: torch.dtype, device: torch.device
) -> float:
    """The largest difference of a kernel from `gathered` in float32 on small steps, over the spread of values."""
    torch.manual_seed(11)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, dtype=torch.float32).to(device=device, dtype=dtype)

    keys, values = (
        random(TRIAL_PAGES + 1, PAGE_TOKENS, shape.heads, width) for width in (shape.key_width, shape.value_width)
    )
    worst = 0.0
    for segments in TRIALS:
        count = sum(segment.rows for segment in segments)
        query = random(64, query_heads, shape.key_width)

        def layout(steady: bool, segments: list[Segment] = segments, count: int = count) -> StaticLayout:
            form = shape_of(segments, 0, False, RowRule(64, 64), 64, strict=False, steady=steady)
            packed = fill(form, segments, [0] * count, [], [], TRIAL_PAGES, False)
            return StaticLayout(Inputs(form, packed.to(device)))

        exact = gathered(query.float(), keys.float(), values.float(), layout(False), None, None)[:count].cpu()
        for split_pages in (None, 8):
            got = kernel.attend(query, keys, values, layout(kernel.steady), None, split_pages)[:count].float().cpu()
            difference = (got - exact).abs() / exact.std()
            worst = max(worst, float(torch.nan_to_num(difference, nan=torch.inf).max()))
    return worst


@torch.inference_mode()
def draws_alike(draw: Draw, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether it draws the very tokens of `sampler.draw` on this device."""
    torch.manual_seed(12)
    rows, size = 24, 5003
    logits = (torch.randn(rows, size) * 3).to(device=device, dtype=dtype)
    seeds = torch.randint(-(2**63), 2**63 - 1, (rows,)).to(device)
    positions = torch.randint(0, 100_000, (rows,)).to(device)
    temperatures = torch.linspace(0.0, 2.0, rows, dtype=torch.float64).to(device)
    return torch.equal(
        draw(logits, seeds, positions, temperatures), sampler.draw(logits, seeds, positions, temperatures)
    )
