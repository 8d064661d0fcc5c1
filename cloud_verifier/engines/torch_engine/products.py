"""Matrix products of a CPU on weights that are laid out for them once, in three ways.

`half`: weights that came from float16 or bfloat16 are kept in float16 and multiplied in float32 (FBGEMM). No weight is
rounded, a float32 product is computed, and half as many bytes are read, which is what one row waits for. `onednn`: in
oneDNN's own order; plain products are brought into it anew in every call. `plain`: torch's.

The original weights are let go. What asks a packed layer for its `weight` gets it unpacked, slowly.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn

HALF_TOP = 15  # a row's largest weight is brought below 2 ** 15; float16 ends just below 2 ** 16
WHOLE_BYTES = 4 << 20  # a weight of no more is kept in one piece
PIECE_BYTES = 3 << 19
PIECE_MULTIPLE = 32  # rows of a weight that FBGEMM takes together with AVX-512
UNIT_ROWS = 64
ONEDNN_ROWS = 16  # the number of rows that oneDNN chooses its order for


class Product(ABC):
    """x @ weight.T + bias for x [rows, in], on a weight [out, in] that is kept in its own way."""

    @abstractmethod
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, out] in x's dtype."""

    @property
    @abstractmethod
    def weight(self) -> torch.Tensor:
        """The weight as it was, bit by bit."""


Maker = Callable[[torch.Tensor, torch.Tensor | None], Product]


class Unpackable(Exception):
    """This weight cannot be kept in this way, or not without being rounded."""


class HalfProduct(Product):
    """A float32 product on weights in float16.

    A bfloat16 reaches further down than a float16. So each row of the weight is scaled by a power of two, if it must
    be, and so is what comes out: neither rounds anything.

    FBGEMM multiplies up to 14 rows of x in one pass over the weight, and more in several. So a large weight, such as a
    head, is kept in pieces that stay in a processor's cache from one pass to the next; it is laid out faster, too. What
    the last cache holds as a whole gains nothing from pieces.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Raises Unpackable unless every weight survives in float16."""
        if weight.dtype != torch.float32:
            raise Unpackable("its product is one of float32")
        self._scale: torch.Tensor | None = None
        scaled = weight
        if not torch.equal(weight.half().float(), weight):
            exponents = torch.frexp(weight.abs().amax(1)).exponent
            scale = torch.ldexp(torch.ones(len(weight)), HALF_TOP - exponents)
            scaled = weight * scale[:, None]
            if not torch.equal(scaled.half().float(), scaled) or not torch.equal(scaled / scale[:, None], weight):
                raise Unpackable("some of its weights need more than float16 has")
            self._scale = 1 / scale
            bias = None if bias is None else bias * scale
        library, rows = half_library(torch.get_num_threads()), _piece_rows(*weight.shape)
        starts = range(0, len(weight), rows)
        biases = [None] * len(starts) if bias is None else bias.split(rows)
        self._in, self._out, self._multiply = weight.shape[1], len(weight), library.multiply
        self._pieces: list[tuple[int, int, Any, torch.Tensor | None]] = []
        for first, part, own in zip(starts, scaled.split(rows), biases, strict=True):
            self._pieces.append((first, first + len(part), library.pack(part), own))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = self._multiplied(x)
        return out if self._scale is None else out.mul_(self._scale)

    def _multiplied(self, x: torch.Tensor, biased: bool = True) -> torch.Tensor:
        rows, multiply = len(x), self._multiply
        out = x.new_empty(rows, self._out)
        if len(self._pieces) == 1:
            _, _, packed, bias = self._pieces[0]
            return multiply(x, packed, bias if biased else None, out)
        for first, last, packed, bias in self._pieces:
            # Of one row, what a piece gives lies in one piece; FBGEMM cannot write to part of each of several rows.
            part = out[:, first:last] if rows == 1 else x.new_empty(rows, last - first)
            got = multiply(x, packed, bias if biased else None, part)
            if rows > 1 or got is not part:
                out[:, first:last] = got
        return out

    @property
    def weight(self) -> torch.Tensor:
        """A zero has no sign any more."""
        units = torch.eye(self._in).split(UNIT_ROWS)  # products with ones and zeros round nothing
        weight = torch.cat([self._multiplied(few, biased=False) for few in units]).T
        return weight.contiguous() if self._scale is None else weight * self._scale[:, None]


class HalfLibrary(NamedTuple):
    """FBGEMM as torch offers it. pack: a weight [out, in]. multiply: x, packed, bias, and where the product [rows, out]
    may be put; returns it."""

    pack: Callable[[torch.Tensor], Any]
    multiply: Callable[[torch.Tensor, Any, torch.Tensor | None, torch.Tensor], torch.Tensor]


@cache
def half_library(threads: int) -> HalfLibrary:
    """The better of two ways to call it with so many threads.

    One uses all of them and takes 25 us for a call. The other takes 2 us, uses one, and torch 2.13 says that it will
    not be kept. Raises what torch raises where there is neither.
    """
    if threads > 1:
        return HalfLibrary(_pack_lasting, _multiply_lasting)
    with warnings.catch_warnings():  # that it will not be kept, once
        warnings.simplefilter("ignore")
        try:
            pack, multiply = torch.fbgemm_pack_gemm_matrix_fp16, torch.fbgemm_linear_fp16_weight_fp32_activation
            with torch.inference_mode():
                out = torch.empty(1, 2)
                multiply(torch.ones(1, 2), pack(torch.eye(2)), None, out)
            if torch.equal(out, torch.ones(1, 2)):
                return HalfLibrary(pack, multiply)
        except (RuntimeError, AttributeError, TypeError, NotImplementedError):
            pass
    return HalfLibrary(_pack_lasting, _multiply_lasting)


def _pack_lasting(weight: torch.Tensor) -> Any:
    return torch.ops.quantized.linear_prepack_fp16(weight, None)


def _multiply_lasting(x: torch.Tensor, packed: Any, bias: torch.Tensor | None, _out: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = torch.ops.quantized.linear_dynamic_fp16.default(x, packed)
    return out if bias is None else out.add_(bias)


def _piece_rows(rows: int, width: int) -> int:
    """Rows of a piece of a weight [rows, width]."""
    if 2 * rows * width <= WHOLE_BYTES:
        return rows
    return max(1, PIECE_BYTES // (2 * width * PIECE_MULTIPLE)) * PIECE_MULTIPLE


class OneDnnProduct(Product):
    """A product on weights in oneDNN's own order."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Raises Unpackable for bfloat16.

        oneDNN cuts its sums by the number of rows and of threads in ways that a trial missed where the processor has no
        instructions for it; where it has them, we have not tried.
        """
        if weight.dtype == torch.bfloat16:
            raise Unpackable("sums of bfloat16 depend on the rows in ways that a trial misses")
        self._bias = bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, ONEDNN_ROWS)
        self._multiply = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self._multiply(x, self._packed, self._bias, "none", [], "")
        return out

    @property
    def weight(self) -> torch.Tensor:
        weight: torch.Tensor = self._packed.to_dense()
        return weight


class PlainProduct(Product):
    """torch's own."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self._weight, self._bias)

    @property
    def weight(self) -> torch.Tensor:
        return self._weight


# The one to be preferred first.
KINDS: dict[str, Maker] = {"half": HalfProduct, "onednn": OneDnnProduct, "plain": PlainProduct}


class PackedLinear(nn.Module):
    """Stands where an `nn.Linear` stood."""

    def __init__(self, product: Product, in_features: int, out_features: int, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = in_features, out_features, bias
        self.product = product

    @property
    def weight(self) -> torch.Tensor:
        """As it was; unpacked each time."""
        return self.product.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., in]; returns [..., out]."""
        return self.product(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)


def linears(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """The plain linear layers of a model: each with the module it belongs to and its name there."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.weight.device.type == "cpu" and not child._forward_hooks
    ]


def made(kind: str, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]) -> Product:
    """One product for several weights [out, in] with the same `in`, laid one after the other.

    The kind falls back on the next where a weight cannot be kept so: all of the same numbers. Raises nothing.
    """
    weight = weights[0] if len(weights) == 1 else torch.cat(list(weights))
    given = [bias for bias in biases if bias is not None]
    assert len(given) in (0, len(weights))
    bias = None if not given else given[0] if len(given) == 1 else torch.cat(given)
    names = list(KINDS)
    for name in names[names.index(kind) :]:
        try:
            return KINDS[name](weight.detach(), None if bias is None else bias.detach())
        except (Unpackable, RuntimeError, AttributeError, NotImplementedError):  # as builds of torch say it
            continue
    raise AssertionError("a plain product can always be made")
