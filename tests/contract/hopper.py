"""Compile our kernels for a Hopper GPU, which takes none; prints for each what ptxas says of its registers.

Not within pytest: there Triton interprets. See `test_fused`.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cloud_verifier.engines.torch_engine.fused import attention, draw, layers

HALF, FLOAT, DOUBLE, LONG, INT = "*bf16", "*fp32", "*fp64", "*i64", "*i32"
# By the names of a kernel's arguments; the shapes are those of Llama-3.1-8B.
TYPES = {
    **dict.fromkeys(("parts", "tops", "sums"), FLOAT),
    **dict.fromkeys(("positions", "places", "seeds", "tokens"), LONG),
    **dict.fromkeys(("ends", "table"), INT),
    **dict.fromkeys(("temperatures", "scores"), DOUBLE),
    **dict.fromkeys(("scale", "epsilon"), "fp32"),
    **dict.fromkeys(("sequences", "table_width", "split_pages", "splits", "row_stride", "head_stride", "size"), "i32"),
}
HEADS: dict[str, Any] = {"HEADS": 32, "KEY_HEADS": 8, "PAGE": 64, "VALUE_WIDTH": 128, "VALUE_BLOCK": 128}
KEYS = {"KEY_WIDTH": 128, "KEY_BLOCK": 128, "TILE": attention.TILE, "PRECISION": "tf32"}
ROTATED = {"HEADS": 32, "KEY_HEADS": 8, "WIDTH": 128, "BLOCK": 64}
COMBINED = {name: HEADS[name] for name in HEADS if name != "KEY_HEADS"} | {"COMBINED": attention.COMBINED}
KERNELS: list[tuple[Any, dict[str, Any], int]] = [
    *((attention._attend, HEADS | KEYS | {"LONE": lone}, 4) for lone in (True, False)),
    (attention._combine, COMBINED, 2),
    *((layers._add_norm, {"WIDTH": 4096, "BLOCK": 4096, "ADD": add}, 8) for add in (True, False)),
    *((layers._rotate_and_write, ROTATED | {"NORM": norm}, 1) for norm in (True, False)),
    (layers._gate, {"WIDTH": 14336, "BLOCK": 1024}, 4),
    (draw._draw, {"COUNTERS": draw.COUNTERS}, 4),
]


def main() -> None:
    """One line for each kernel."""
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    for kernel, constants, warps in KERNELS:
        names = kernel.arg_names
        types = {name: TYPES.get(name, HALF) for name in names if name not in constants}
        if kernel is draw._draw:
            types["parts"] = "i32"
        source = ASTSource(
            fn=kernel,
            signature={name: types.get(name, "constexpr") for name in names},
            constexprs={(names.index(name),): value for name, value in constants.items()},
            attrs={(names.index(name),): [["tt.divisibility", 16]] for name in types if types[name] == HALF},
        )
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
        with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
            file.write(compiled.asm["ptx"])
            file.flush()
            command = [str(ptxas), "-v", "-arch=sm_90a", file.name, "-o", "/dev/null"]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        spilled = next(line.strip() for line in said.splitlines() if "spill" in line)
        products = "wgmma" in compiled.asm["ptx"]
        print(f"{kernel.__name__}: {spilled}; {compiled.metadata.shared} bytes shared; tensor cores: {products}")


if __name__ == "__main__":
    main()
