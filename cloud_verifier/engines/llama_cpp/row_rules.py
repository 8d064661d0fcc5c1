"""How many rows one decode of llama.cpp may have, so that the bits of a row do not depend on the others.

What decides them on a CPU (ggml of llama-cpp-python 0.3.36, x86): flash attention of 64 rows and more is computed in
tiles, and that of a lone row is split among threads by how much of the cache is in use; between the two every row
attends by itself, over its own cells in their order, skipping those of others. Neither tiles nor splits are made where
keys and values are numbers of different types, so strict mode keeps float16 keys and bfloat16 values. Matrix products
of q8_0, q4_0 and q4_1 agree for any number of rows, those of f16 and f32 for two and more, those of K-quants for one to
seven, if they are not repacked, and for eight and more in fours.
"""

from __future__ import annotations

from dataclasses import dataclass

BATCH_ROWS = 512  # that a context is made for


@dataclass(frozen=True)
class RowRule:
    """At least and at most so many rows, and a multiple. A decode of others gets rows of no sequence for company."""

    least: int = 1
    most: int = BATCH_ROWS
    multiple: int = 1

    def padded(self, rows: int) -> int:
        """The number of rows to run for so many tokens."""
        return max(self.least, -(-rows // self.multiple) * self.multiple)

    def __str__(self) -> str:
        return f"{self.least} to {self.most} rows in multiples of {self.multiple}"


PLAIN_ROWS = RowRule()
_ALONE, _IN_COMPANY = RowRule(1, 32), RowRule(2, 32)
# What strict mode may try, cheapest first: rules by whether the weights are repacked for the CPU's kernels.
CPU_RULES: tuple[tuple[bool, tuple[RowRule, ...]], ...] = (
    (True, (PLAIN_ROWS, _ALONE, _IN_COMPANY)),
    (False, (RowRule(1, 7), RowRule(2, 7))),
    (True, (RowRule(8, 32, 4),)),
)
GPU_RULES = ((True, (PLAIN_ROWS, _ALONE, _IN_COMPANY, RowRule(8, 32, 8))),)
