"""What `--drafter` may say. Parsing only: nothing here opens a model or asks the network.

::

    none                          no drafting
    demo                          the demo pair's drafter
    ngram                         no model: what followed these words earlier in the conversation
    history                       no model: what followed them in this user's past answers, which it keeps
    FILE.gguf, FILE.onnx, FOLDER  a model on this device; Ollama's files are GGUF, too, and named sha256-...
    hf:ORG/REPO[@REV][:CHOICE]    a model of the Hugging Face hub; CHOICE is a quantization (Q4_K_M, q4f16) or a file
    A+B                           a chain: what A does not guess, B does; ngram or history, before a model or alone

A path that exists is a path, whatever signs it has in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edge_client.drafters.errors import DrafterError
from outrider_models.hub_model import HUB, HubModel, parse_hub

CHAIN = "+"
LOOKUPS = ("ngram", "history")
NAMES = ("demo", *LOOKUPS)  # drafters known by name; `NAME:ARGUMENT` gives one an argument
ACCEPTED = (
    "a .gguf file, a .onnx file, a folder with one of them, hf:ORG/REPO[@REVISION][:QUANTIZATION or FILE], "
    f"{', '.join(NAMES)}, or none"
)
_OLLAMA_FILE = re.compile("sha256-[0-9a-f]{64}")


@dataclass(frozen=True)
class LocalModel:
    """A file or a folder on this device; it exists."""

    path: Path


@dataclass(frozen=True)
class NamedDrafter:
    """One of `NAMES`, with what stood after its colon."""

    name: str
    argument: str = ""


Part = LocalModel | HubModel | NamedDrafter


def parse(spec: str | Path | None) -> list[Part]:
    """The drafters of a spec, in the chain's order; an empty list means none. Raises DrafterError on anything else."""
    if spec is None or spec in ("none", ""):
        return []
    whole = Path(spec).expanduser()
    if isinstance(spec, Path) or whole.exists():
        return [_local(whole)]
    return [_part(text) for text in spec.split(CHAIN)]


def _part(text: str) -> Part:
    if text.startswith(HUB):
        return parse_hub(text)
    name, _, argument = text.partition(":")
    if name in NAMES:
        return NamedDrafter(name, argument)
    return _local(Path(text).expanduser())


def _local(path: Path) -> LocalModel:
    if not path.exists():
        hint = f"; a model of the hub is written hf:{path}" if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) else ""
        raise DrafterError(f"cannot draft with {str(path)!r}: it does not exist. Accepted are {ACCEPTED}{hint}.")
    if path.is_file() and path.suffix not in (".gguf", ".onnx") and not _OLLAMA_FILE.fullmatch(path.name):
        raise DrafterError(f"cannot draft with {str(path)!r}: it is not one of these. Accepted are {ACCEPTED}.")
    return LocalModel(path)
