"""Drafters: small models on the device that guess what the target will say. `base` is the contract.

Runtimes are imported only when a drafter that needs them is loaded, and NumPy not before: commands show their --help
at once.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from outrider.demo_pair import demo_folder

from edge_client.drafters.errors import DrafterError
from edge_client.drafters.settings import DeviceSettings
from edge_client.drafters.sources.spec import CHAIN, LOOKUPS, LocalModel, NamedDrafter, Part, parse
from outrider_models.file_choice import choose
from outrider_models.hub_model import HubModel

if TYPE_CHECKING:
    from edge_client.drafters.base import Drafter


def load_drafter(
    spec: str | Path | None, *, threads: int = 1, settings: DeviceSettings | None = None
) -> Drafter | None:
    """Load what `spec` names: see `edge_client.drafters.sources.spec`. None and "none" give None: no drafting.

    threads: for the runtime. settings: how the model uses the device. Raises DrafterError with what is accepted.
    """
    parts = parse(spec)
    if not parts:
        return None
    lookups = [part for part in parts if isinstance(part, NamedDrafter) and part.name in LOOKUPS]
    models = parts[len(lookups) :]
    if parts[: len(lookups)] != lookups or len(models) > 1:
        raise DrafterError(
            f"cannot chain {spec}: a chain is {' or '.join(LOOKUPS)}, joined by {CHAIN}, before at most one model"
        )
    model = _load(models[0], threads, settings or DeviceSettings()) if models else None
    if not lookups:
        return model
    opened = [_lookup(part) for part in lookups]
    if len(opened) == 1 and model is None:
        return opened[0]
    from edge_client.drafters.lookup.chain import ChainDrafter

    return ChainDrafter(opened, model)


def _lookup(part: NamedDrafter) -> Drafter:
    if part.name == "ngram":
        from edge_client.drafters.lookup.ngram import NgramDrafter

        return NgramDrafter()
    from edge_client.drafters.lookup.history import HistoryDrafter

    return HistoryDrafter()


def _load(part: Part, threads: int, settings: DeviceSettings) -> Drafter:
    match part:
        case LocalModel(path):
            return _load_model(path, threads, settings)
        case HubModel():
            from outrider_models.hub import fetch

            file = fetch(part, offline=settings.offline)
            drafter = _load_model(file, threads, settings)
            # The file lies in a folder named by a commit, which says nothing to people.
            drafter.info = dataclasses.replace(drafter.info, name=f"{part.repo}/{file.name}")
            return drafter
        case NamedDrafter():
            return _load_model(_demo(), threads, settings)


def _load_model(path: Path, threads: int, settings: DeviceSettings) -> Drafter:
    """path: a file, or a folder in which there is one to draft with."""
    if path.is_dir():
        patterns = ("*.gguf", "*.onnx", "*/*.onnx")
        files = [file.relative_to(path).as_posix() for pattern in patterns for file in path.glob(pattern)]
        path /= choose(files, None, f"the folder {path}", local=True)
    if path.suffix == ".onnx":
        from edge_client.drafters.onnx.drafter import open_onnx

        return open_onnx(path, threads=threads, settings=settings)
    from edge_client.drafters.llama_cpp.drafter import LlamaCppDrafter

    return LlamaCppDrafter(path, threads=threads, settings=settings)


def _demo() -> Path:
    try:
        return demo_folder() / "drafter-onnx"
    except FileNotFoundError as error:
        raise DrafterError(str(error)) from error
