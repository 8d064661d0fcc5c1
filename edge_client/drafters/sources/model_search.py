"""Models that lie on this device already: in the current folder, and where people's other programs keep theirs.

Only names, sizes and headers are read. Nothing is loaded, and no folder is walked deeply.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edge_client.drafters.base import DrafterError
from edge_client.drafters.llama_cpp.gguf_header import read_header
from edge_client.drafters.onnx.graph import beside, read_folder_config
from edge_client.drafters.settings import DEFAULT_CONTEXT_TOKENS
from edge_client.drafters.sources.file_choice import PLAIN, choose, companions, is_model

MOST_FOLDERS = 2000  # looked into at one place
_SKIPPED = {"node_modules", "site-packages", "__pycache__", "venv", "blobs", "refs"}
_OLLAMA_MODEL, _OLLAMA_ADAPTER = "application/vnd.ollama.image.model", "application/vnd.ollama.image.adapter"
_F16_BYTES = 2.0


class Place(NamedTuple):
    """A folder where models may lie. name: for people. depth: how many folders down to look."""

    name: str
    folder: Path
    depth: int


class Model(NamedTuple):
    """A model that could be opened as a drafter.

    path: the file. label: for people. weights_bytes: of all its files. memory_bytes: with a key-value cache of the
    usual context. reads_all_weights: whether every token needs all of them, as without experts.
    """

    path: Path
    label: str
    weights_bytes: int
    memory_bytes: int
    reads_all_weights: bool = True


class LeftOut(NamedTuple):
    """What is not proposed, and why not."""

    what: str
    why: str


def usual_places() -> list[Place]:
    """Where to look, nearest first; not all of them need be there."""
    home, here = Path.home(), Path.cwd()
    caches = home / "Library" / "Caches" if sys.platform == "darwin" else _folder("XDG_CACHE_HOME", home / ".cache")
    hub_home = _folder("HF_HOME", _folder("XDG_CACHE_HOME", home / ".cache") / "huggingface")
    return [
        Place("here", here, 1),
        Place("models/", here / "models", 3),
        Place("Hugging Face", _folder("HF_HUB_CACHE", hub_home / "hub"), 4),
        Place("llama.cpp", _folder("LLAMA_CACHE", caches / "llama.cpp"), 1),
        Place("LM Studio", home / ".lmstudio" / "models", 3),
        Place("LM Studio", home / ".cache" / "lm-studio" / "models", 3),
        Place("Ollama", _folder("OLLAMA_MODELS", home / ".ollama" / "models"), 0),
        Place("Ollama", Path("/usr/share/ollama/.ollama/models"), 0),
    ]


def look(places: list[Place]) -> tuple[list[Model], list[LeftOut]]:
    """Every model once, the smallest first, and what looked like one but cannot be used."""
    found: dict[Path, Model] = {}
    left_out = []
    for place in places:
        for file, label in _ollama(place.folder) if place.name == "Ollama" else _files(place):
            real = file.resolve()  # the hub's cache links several names to one file
            if real in found:
                continue
            try:
                if (model := _model(file, label)) is not None:
                    found[real] = model
            except DrafterError as error:
                left_out.append(LeftOut(label, str(error)))
            except OSError as error:
                left_out.append(LeftOut(label, f"it cannot be read: {error.strerror}"))
    return sorted(found.values(), key=lambda model: model.weights_bytes), left_out


def _folder(variable: str, default: Path) -> Path:
    named = os.environ.get(variable)
    return Path(named).expanduser() if named else default


def _files(place: Place) -> Iterator[tuple[Path, str]]:
    """Files that a drafter could be opened by: every GGUF model, and of ONNX files in a folder the one to take."""
    for folder in _walk(place.folder, place.depth):
        try:
            names = [entry.name for entry in os.scandir(folder) if entry.is_file()]
        except OSError:
            continue
        for name in sorted(names):
            if name.endswith(".gguf") and is_model(name):
                yield folder / name, _label(place, folder / name)
        if graphs := [name for name in names if name.endswith(".onnx")]:
            try:
                chosen = folder / choose(graphs, None, str(folder), local=True)
            except DrafterError:
                continue  # parts of something else, or many of a kind, of which a person has to name one
            if beside(chosen, "tokenizer.json") is not None:
                yield chosen, _label(place, chosen)


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    waiting = [(folder, depth)]
    for _ in range(MOST_FOLDERS):
        if not waiting:
            return
        folder, left = waiting.pop(0)
        if not os.path.isdir(folder):  # Path's raises where a folder above may not be entered
            continue
        yield folder
        if left:
            try:
                inside = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
            except OSError:
                continue
            waiting += [(folder / name, left - 1) for name in inside if name[0] != "." and name not in _SKIPPED]


def _ollama(folder: Path) -> Iterator[tuple[Path, str]]:
    """Its models are plain GGUF files named by their hash; manifests say which is which."""
    manifests = folder / "manifests"
    try:
        files = sorted(file for file in manifests.rglob("*") if file.is_file())
    except OSError:
        return  # another user's
    for manifest in files:
        try:
            layers = json.loads(manifest.read_text())["layers"]
            kinds = {str(layer["mediaType"]): str(layer["digest"]) for layer in layers}
            blob = folder / "blobs" / kinds.get(_OLLAMA_MODEL, "").replace(":", "-")
            usable = _OLLAMA_MODEL in kinds and _OLLAMA_ADAPTER not in kinds and blob.is_file()
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if usable:
            yield blob, f"{manifest.parent.name}:{manifest.name} (Ollama)"


def _model(file: Path, label: str) -> Model | None:
    """None for a model that does not write text. Raises DrafterError for one that cannot be used, and OSError."""
    beside_it = [entry.name for entry in os.scandir(file.parent)]
    pieces = [file.name, *(name for name in companions(file.name, beside_it) if not name.endswith(".json"))]
    weights_bytes = sum((file.parent / name).stat().st_size for name in pieces)
    if file.suffix == ".onnx":
        try:
            config = read_folder_config(file)
        except DrafterError:
            return None  # an encoder, most often
        context = min(DEFAULT_CONTEXT_TOKENS, config.context_tokens or DEFAULT_CONTEXT_TOKENS)
        return Model(file, label, weights_bytes, weights_bytes + config.cache_bytes(context))
    header = read_header(file)
    about = header.metadata
    if about.get(f"{header.architecture}.attention.causal") is False or "clip" in header.architecture:
        return None
    if f"{header.architecture}.pooling_type" in about:
        return None  # it makes vectors
    context = min(DEFAULT_CONTEXT_TOKENS, header.number("context_length") or DEFAULT_CONTEXT_TOKENS)
    memory_bytes = weights_bytes + header.cache_bytes(context, _F16_BYTES)
    return Model(file, label, weights_bytes, memory_bytes, not header.number("expert_count"))


def _label(place: Place, file: Path) -> str:
    """As people know it: short, and unmistakable where many files have one name."""
    inside = file.relative_to(place.folder)
    if inside.name == PLAIN and len(inside.parts) > 1:
        inside = inside.parent
    if place.name == "Hugging Face" and (parts := inside.parts)[0].startswith("models--"):
        return "/".join((*parts[0].removeprefix("models--").split("--"), *parts[3:]))
    if place.name == "here":
        return str(inside)
    return f"models/{inside}" if place.name == "models/" else f"{inside} ({place.name})"
