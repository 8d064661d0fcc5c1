"""How many rows one forward may have, and how its matrix products may add up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import torch


@dataclass(frozen=True)
class RowRule:
    """How many rows one forward may have: a multiple of `multiple`, at most `most`. A longer step takes several.

    whole: on a GPU, no matrix product may be cut along what it sums up. cuBLAS does so, to keep a GPU busy with few
    rows, and how depends on their number.
    """

    multiple: int
    most: int
    whole: bool = False

    def padded(self, rows: int) -> int:
        """The number of rows to run for so many tokens."""
        return -(-rows // self.multiple) * self.multiple

    @property
    def sizes(self) -> range:
        """All numbers of rows that a forward may have."""
        return range(self.multiple, self.most + 1, self.multiple)

    def __str__(self) -> str:
        rows = f"{self.most} rows" if self.multiple == self.most else f"multiples of {self.multiple} rows"
        return f"{rows}, products in one piece" if self.whole else rows


PLAIN_ROWS = RowRule(1, 2048)
MOST_ROWS = 512  # of one forward on a CPU
SAFE_RULES = RowRule(8, MOST_ROWS), RowRule(16, MOST_ROWS), RowRule(64, 64)  # with MKL's products
# Of few rows more products agree than of many: oneDNN cuts what bfloat16 adds up when there are many.
CPU_RULES = (
    *(RowRule(multiple, most) for multiple in (1, 2, 4) for most in (MOST_ROWS, 64)),
    *SAFE_RULES,
)
# On a GPU the kernel of a matrix product may change with the number of rows, and with it the order of a sum. Whether it
# does is tried; where it does, one number of rows serves all. 128 rows cost a step that waits for its weights little
# more than one row.
GPU_RULES = (
    RowRule(64, 512),
    RowRule(64, 512, whole=True),
    RowRule(128, 512, whole=True),
    RowRule(128, 128),
    RowRule(256, 256),
)


def strict_row_rules(device: torch.device) -> tuple[RowRule, ...]:
    """What strict mode may try where nothing is known of the products, cheapest first."""
    return SAFE_RULES if device.type == "cpu" else GPU_RULES


_summing = Lock()


@contextmanager
def summing_as(rule: RowRule, device: torch.device) -> Iterator[None]:
    """Within it, matrix products on a GPU add up as the rule says, and never in less than float32.

    torch has one setting for the whole process, so engines of several models wait here for each other.
    """
    if device.type != "cuda":
        yield
        return
    with _summing, torch.cuda.device(device):  # Triton starts its kernels on the current device
        torch.backends.cuda.preferred_blas_library("cublaslt" if rule.whole else "default")  # cuBLAS cannot be told
        for name in ("bf16", "fp16"):
            setattr(torch.backends.cuda.matmul, f"allow_{name}_reduced_precision_reduction", (False, not rule.whole))
        yield
