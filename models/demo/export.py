"""Turn a transformers folder into what a device drafts with, and check the result against its source.

::

    python -m models.demo.export onnx --model WORK/drafter --output models/demo/drafter-onnx
    python -m models.demo.export gguf --model WORK/drafter --output drafter.gguf --quantize q8_0

Both default to 8 bits: at a few million parameters 4 bits are no faster and lose every seventh best token.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from edge_client.drafters.base import Drafter
from models.demo.agreement import DIALOGUES, Agreement, compare
from models.demo.data import DEV_FILES, load_dialogues

ENOUGH_DIALOGUES = 20
WHOLE_VOCABULARY = 1 << 30


def export(kind: str, model: Path, output: Path, quantize: str | None) -> Callable[[int], Drafter]:
    """Write `output` and return how to load it with a number of candidates. The exporters' errors are passed on."""
    if kind == "gguf":
        from edge_client.drafters.llama_cpp import LlamaCppDrafter
        from models.demo.export_gguf import export_gguf

        export_gguf(model, output, quantize or "q8_0")
        return lambda count: LlamaCppDrafter(output, top_candidates=count)
    from edge_client.drafters.onnx import OnnxDrafter
    from models.demo.export_onnx import export_onnx

    export_onnx(model, output, quantize or "int8")
    return lambda count: OnnxDrafter(output, top_candidates=count)


def check(model: Path, load: Callable[[int], Drafter], data: Path | None) -> Agreement:
    """Agreement over the whole vocabulary; the time is that of the usual number of candidates."""
    dialogues = load_dialogues(data, DEV_FILES)[:ENOUGH_DIALOGUES] if data else DIALOGUES
    whole, usual = load(WHOLE_VOCABULARY), load(64)
    try:
        exact, timed = compare(model, whole, dialogues), compare(model, usual, dialogues)
    finally:
        whole.close()
        usual.close()
    return Agreement(exact.tokens, exact.argmax, exact.overlap, timed.ms_per_token)


def size_bytes(output: Path) -> int:
    """Bytes of the file, or of all files in the folder."""
    files = [output] if output.is_file() else [file for file in output.iterdir() if file.is_file()]
    return sum(file.stat().st_size for file in files)


def main() -> None:
    """The command line: export, then report size and agreement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    formats = parser.add_subparsers(dest="kind", required=True)
    for kind, choices, default in (
        ("gguf", ("q8_0", "q4_0", "f16", "f32"), "q8_0"),
        ("onnx", ("int8", "int4", "fp32"), "int8"),
    ):
        one = formats.add_parser(kind)
        one.add_argument("--model", type=Path, required=True, help="transformers folder")
        one.add_argument("--output", type=Path, required=True, help="file (gguf) or folder (onnx) to write")
        one.add_argument("--quantize", choices=choices, default=default, help="default: %(default)s")
        one.add_argument(
            "--data", type=Path, help="folder with dialogue files to check against (default: two built in)"
        )
    args = parser.parse_args()
    load = export(args.kind, args.model, args.output, args.quantize)
    print(f"{args.output}: {size_bytes(args.output) / 1e6:.2f} MB as {args.quantize}", flush=True)
    print(check(args.model, load, args.data), flush=True)


if __name__ == "__main__":
    main()
