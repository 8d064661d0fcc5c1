"""Turn the demo's drafter into what a device drafts with, and check the result on dialogues.

::

    python -m models.demo.export onnx --model WORK/drafter --output models/demo/drafter-onnx
    python -m models.demo.export gguf --model WORK/drafter --output drafter.gguf --quantize q8_0

`edge-client export` does this for any model. Both default to 8 bits: at a few million parameters 4 bits are no faster
and lose every seventh best token.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_client.export.agreement import sequences
from edge_client.export.exporting import FORMATS, check, export, size_bytes
from models.demo.data import DEV_FILES, load_dialogues, render
from models.demo.dialogues import DIALOGUES

ENOUGH_DIALOGUES = 20


def main() -> None:
    """The command line: export, then report size and agreement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=FORMATS)
    parser.add_argument("--model", type=Path, required=True, help="transformers folder")
    parser.add_argument("--output", type=Path, required=True, help="file (gguf) or folder to write")
    parser.add_argument("--quantize", help="default: 8 bits")
    parser.add_argument("--data", type=Path, help="folder with dialogue files to check against (default: two built in)")
    args = parser.parse_args()
    path = export(args.kind, args.model, args.output, args.quantize)
    print(f"{path}: {size_bytes(path) / 1e6:.2f} MB", flush=True)
    dialogues = load_dialogues(args.data, DEV_FILES)[:ENOUGH_DIALOGUES] if args.data else DIALOGUES
    print(check(args.model, path, sequences(args.model, map(render, dialogues))), flush=True)


if __name__ == "__main__":
    main()
