"""Models that lie on this device already: in the current folder, and where people's other programs keep theirs.

Only names, sizes and headers are read. Nothing is loaded, and no folder is walked deeply.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from outrider.demo_pair import demo_folder

from edge_client.drafters.errors import DrafterError
from edge_client.drafters.onnx.graph import beside, read_folder_config
from edge_client.drafters.settings import DEFAULT_CONTEXT_TOKENS
from outrider_models.file_choice import PLAIN, choose, companions, is_model
from outrider_models.gguf_header import read_header

MOST_FOLDERS = 2000  # looked into at one place
_DEMO = "demo"
_NAMED_DEPTH = 3
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
    usual context. reads_all_weights: whether every token needs all of them, as without experts. vocabulary_tokens: None
    if its files do not tell. spec: as `--drafter` takes it.
    """

    path: Path
    label: str
    weights_bytes: int
    memory_bytes: int
    reads_all_weights: bool = True
    vocabulary_tokens: int | None = None
    spec: str = ""

    @property
    def kind(self) -> str:
        """The format: gguf or onnx."""
        return "onnx" if self.path.suffix == ".onnx" else "gguf"  # Ollama's have no ending


class LeftOut(NamedTuple):
    """What is not proposed, and why not."""

    what: str
    why: str


def search(folders: Sequence[Path] = (), *, demo: bool = False) -> tuple[list[Model], list[LeftOut]]:
    """The models of this device: in the usual places and in these folders. demo: and the demo pair's. As `look`."""
    places = [*usual_places(), *(Place(str(folder), folder.absolute(), _NAMED_DEPTH) for folder in folders)]
    if demo:
        with contextlib.suppress(FileNotFoundError):
            places.insert(0, Place(_DEMO, demo_folder(), 1))
    return look(places)


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
        for file, label, spec in _ollama(place.folder) if place.name == "Ollama" else _files(place):
            real = file.resolve()  # the hub's cache links several names to one file
            if real in found:
                continue
            try:
                if (model := _model(file, label, spec)) is not None:
                    found[real] = model
            except DrafterError as error:
                left_out.append(LeftOut(label, str(error)))
            except OSError as error:
                left_out.append(LeftOut(label, f"it cannot be read: {error.strerror}"))
    return sorted(found.values(), key=lambda model: model.weights_bytes), left_out


def _folder(variable: str, default: Path) -> Path:
    named = os.environ.get(variable)
    return Path(named).expanduser() if named else default


def _files(place: Place) -> Iterator[tuple[Path, str, str]]:
    """Files that a drafter could be opened by: every GGUF model, and of ONNX files in a folder the one to take."""
    for folder in _walk(place.folder, place.depth):
        try:
            names = [entry.name for entry in os.scandir(folder) if entry.is_file()]
        except OSError:
            continue
        for name in sorted(names):
            if name.endswith(".gguf") and is_model(name):
                yield folder / name, *_names(place, folder / name)
        if graphs := [name for name in names if name.endswith(".onnx")]:
            try:
                chosen = folder / choose(graphs, None, str(folder), local=True)
            except DrafterError:
                continue  # parts of something else, or many of a kind, of which a person has to name one
            if beside(chosen, "tokenizer.json") is not None:
                yield chosen, *_names(place, chosen)


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


def _ollama(folder: Path) -> Iterator[tuple[Path, str, str]]:
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
            yield blob, f"{manifest.parent.name}:{manifest.name} (Ollama)", _short(blob)


def _model(file: Path, label: str, spec: str) -> Model | None:
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
        memory_bytes = weights_bytes + config.cache_bytes(context)
        return Model(file, label, weights_bytes, memory_bytes, True, config.vocabulary_size, spec)
    header = read_header(file)
    about = header.metadata
    if about.get(f"{header.architecture}.attention.causal") is False or "clip" in header.architecture:
        return None
    if f"{header.architecture}.pooling_type" in about:
        return None  # it makes vectors
    context = min(DEFAULT_CONTEXT_TOKENS, header.number("context_length") or DEFAULT_CONTEXT_TOKENS)
    memory_bytes = weights_bytes + header.cache_bytes(context, _F16_BYTES)
    reads_all = not header.number("expert_count")
    return Model(file, label, weights_bytes, memory_bytes, reads_all, header.vocabulary_size, spec)


def _names(place: Place, file: Path) -> tuple[str, str]:
    """The label: as people know it, short, and unmistakable where many files have one name; and the spec."""
    inside = file.relative_to(place.folder)
    parts = inside.parts
    if place.name == _DEMO:
        return (_DEMO, _DEMO) if inside.name == PLAIN else (f"{_DEMO}/{inside}", _short(file))
    if place.name == "Hugging Face" and parts[0].startswith("models--"):
        repository = parts[0].removeprefix("models--").replace("--", "/")
        inside = Path(*parts[3:])
        label = f"{repository}/{inside.parent}" if inside.name == PLAIN and len(parts) > 4 else f"{repository}/{inside}"
        return label, f"hf:{repository}{_revision(place.folder / parts[0], parts[2])}:{inside.as_posix()}"
    if inside.name == PLAIN and len(parts) > 1:
        inside = inside.parent
    if place.name == "here":
        return str(inside), str(inside)
    if place.name == "models/":
        return f"models/{inside}", f"models/{inside}"
    return f"{inside} ({place.name})", _short(place.folder / inside)


def _revision(repository: Path, commit: str) -> str:
    """What a spec needs to name this commit; nothing for the one that the hub's cache takes by itself."""
    try:
        return "" if (repository / "refs" / "main").read_text().strip() == commit else f"@{commit}"
    except OSError:
        return f"@{commit}"


def _short(path: Path) -> str:
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
