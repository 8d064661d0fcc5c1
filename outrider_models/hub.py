"""Models of the Hugging Face hub: listed, chosen, downloaded into the hub's own cache, and found there offline.

The cache is the one of `huggingface_hub` (`HF_HOME`, `HF_HUB_CACHE`), so whatever another program has fetched is used,
downloads show their progress and go on where they broke off, and `HF_TOKEN` opens what is gated.
"""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from outrider_models.errors import ModelFileError
from outrider_models.file_choice import FORMATS, choose, companions
from outrider_models.hub_model import HubModel
from outrider_models.memory_check import available_bytes, check_memory, readable

_INSTALL = "models of the hub need huggingface_hub: pip install huggingface_hub, or name a file on this device"
_DEFAULT_REVISION = "main"
log = logging.getLogger(__name__)


def fetch(model: HubModel, *, offline: bool = False, formats: Collection[str] = FORMATS) -> Path:
    """The chosen file on this device, with all that belongs to it; downloads what is missing.

    formats: those that will do. offline (or HF_HUB_OFFLINE=1) takes what is in the cache. So does a hub that cannot be
    reached. Raises ModelFileError if there is no such model, no way to choose among its files, too little memory, or no
    network and nothing cached.
    """
    huggingface_hub = _hub()
    if offline or huggingface_hub.constants.HF_HUB_OFFLINE:
        return _cached(huggingface_hub, model, "offline", formats)
    sizes = _listing(huggingface_hub, model)
    if sizes is None:
        return _cached(huggingface_hub, model, "the hub cannot be reached", formats)
    file = choose(sizes, model.choice, str(model), formats=formats)
    wanted = [file, *companions(file, sizes)]
    _check_memory(model, file, wanted, sizes)
    try:
        folder = huggingface_hub.snapshot_download(
            model.repo,
            revision=model.revision,
            allow_patterns=[glob.escape(name) for name in wanted],
            library_name="outrider",
        )
    except Exception as error:  # whatever a download can do: what had come is kept for the next time
        raise ModelFileError(
            f"{model} could not be downloaded: {_first_line(error)}; the next try goes on there"
        ) from error
    return Path(folder, file)


def download_bytes(model: HubModel) -> int:
    """How much `fetch` would download if nothing of it were here. Raises ModelFileError if the hub does not tell."""
    hub = _hub()
    sizes = None if hub.constants.HF_HUB_OFFLINE else _listing(hub, model)
    if sizes is None:
        raise ModelFileError("the hub cannot be reached")
    file = choose(sizes, model.choice, str(model))
    return sum(sizes[name] for name in (file, *companions(file, sizes)))


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise ModelFileError(_INSTALL) from error
    return huggingface_hub


def _listing(hub: Any, model: HubModel) -> dict[str, int] | None:
    """File names and bytes of the repository; None if the hub cannot be reached."""
    errors = hub.errors
    try:
        info = hub.HfApi(library_name="outrider").model_info(model.repo, revision=model.revision, files_metadata=True)
    except errors.GatedRepoError as error:
        raise ModelFileError(
            f"{model} is gated: accept its terms on the hub, then log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelFileError(f"{model.repo} has no revision {model.revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelFileError(
            f"the hub has no model {model.repo}, or it is private: check the name, or log in with `hf auth login`"
        ) from error
    except errors.HFValidationError as error:
        raise ModelFileError(f"{model} names no model of the hub: {_first_line(error)}") from error
    except (OSError, errors.HTTPError) as error:  # no network, no answer, no name
        log.warning("the hub cannot be reached (%s); looking in its cache", _first_line(error))
        return None
    return {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}


def _cached(hub: Any, model: HubModel, why: str, formats: Collection[str]) -> Path:
    cache = Path(hub.constants.HF_HUB_CACHE)
    folder = cache / f"models--{model.repo.replace('/', '--')}"
    revision = model.revision or _DEFAULT_REVISION
    reference = folder / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = folder / "snapshots" / commit
    if not snapshot.is_dir():
        raise ModelFileError(
            f"{model} is not in the cache {cache}, and {why}: fetch it once with a network: edge-client pull {model}"
        )
    there = [Path(at, name).relative_to(snapshot).as_posix() for at, _, names in os.walk(snapshot) for name in names]
    return snapshot / choose(there, model.choice, f"the cached part of {model} ({why})", formats=formats)


def _check_memory(model: HubModel, file: str, wanted: list[str], sizes: Mapping[str, int]) -> None:
    """Before gigabytes are fetched: what would fit instead is said from the sizes in the listing."""
    available = available_bytes() or 0
    models = {
        other: sum(sizes[name] for name in (other, *companions(other, sizes)))
        for other in sizes
        if other.endswith((".gguf", ".onnx"))
    }
    smaller = sorted(((size, other) for other, size in models.items() if 0 < size < available), reverse=True)
    fitting = ", ".join(f"{other} ({readable(size)})" for size, other in smaller[:4])
    advice = f"these would fit: {fitting}" if fitting else "take a smaller model"
    check_memory(f"{file} of {model}", sum(sizes[name] for name in wanted), 0, advice)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
