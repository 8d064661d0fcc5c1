"""What --model names, looked at before torch is imported: a wrong name is refused at once, in one sentence."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from outrider.demo_pair import demo_folder

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_GGUF_MAGIC = b"GGUF"
_HUB_TIMEOUT_S = 10.0
log = logging.getLogger(__name__)


class ModelSourceError(Exception):
    """A name of no model that could be served. The message says what was expected."""


def parse_models(values: Sequence[str], served_name: str | None) -> dict[str, str]:
    """Folder or hub id by name, of NAME=MODEL or MODEL; `demo` is the demo pair's target. Raises ModelSourceError."""
    models: dict[str, str] = {}
    for value in values:
        name, equals, model = value.partition("=")
        if not equals or "/" in name:  # a folder may have the sign in its name, too
            name, model = value.rstrip("/").rpartition("/")[2], value
        if not name or not model:
            raise ModelSourceError(f"--model {value}: expected NAME=MODEL or MODEL, a folder or a hub id")
        if name in models:
            raise ModelSourceError(f"two models would have the name {name!r}; name them apart: --model NAME=MODEL")
        models[name] = _demo() if model == "demo" and not Path(model).exists() else model
    if served_name is not None:
        if len(models) > 1:
            raise ModelSourceError("--served-model-name names one model; of several, name each: --model NAME=MODEL")
        models = {served_name: next(iter(models.values()))}
    return models


def _demo() -> str:
    try:
        return str(demo_folder() / "target")
    except FileNotFoundError as error:
        raise ModelSourceError(str(error)) from error


def check_model(model: str) -> None:
    """As `check_path`; and where a hub id's model is not here, ask the hub once.

    A hub that cannot be reached is not asked again by this process, and its cache is used. Raises ModelSourceError.
    """
    if check_path(model):
        _check_hub(model)


def check_path(model: str) -> bool:
    """Refuse a path that is no folder of a transformers model. True: it is a hub id. Raises ModelSourceError."""
    path = Path(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelSourceError(
                f"The folder {model} has no config.json; give the folder of a transformers model, as save_pretrained "
                "writes it."
            )
        return False
    if path.exists():
        raise ModelSourceError(f"{model} is {_kind(path)}; give the folder of a transformers model, or its hub id.")
    if not _HUB_ID.fullmatch(model) or model.startswith("."):
        hub = "" if path.is_absolute() or model.startswith((".", "~")) else ", and a hub id is written ORG/NAME"
        raise ModelSourceError(f"There is no folder {model}{hub}.")
    return True


def _kind(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            if opened.read(len(_GGUF_MAGIC)) == _GGUF_MAGIC:
                return "a GGUF file, which llama.cpp reads and this verifier does not"
    except OSError:
        pass
    return "a file"


def _check_hub(model: str) -> None:
    import huggingface_hub
    from huggingface_hub import constants, errors

    cached = isinstance(huggingface_hub.try_to_load_from_cache(model, "config.json"), str)
    if constants.HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE is set"
    else:
        try:
            huggingface_hub.HfApi(library_name="outrider").model_info(model, timeout=_HUB_TIMEOUT_S)
            return
        except errors.GatedRepoError as error:
            raise ModelSourceError(
                f"{model} is gated on the hub: accept its terms, then log in with `hf auth login` or set HF_TOKEN."
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise ModelSourceError(
                f"There is no folder {model}, and the hub has no such model, or it is private: check the name, or log "
                "in with `hf auth login` or set HF_TOKEN."
            ) from error
        except errors.HFValidationError as error:
            raise ModelSourceError(f"{model} is neither a folder nor a hub id, which is written ORG/NAME.") from error
        except Exception as error:  # no network, no answer, no name: whatever the HTTP library raises
            lines = (str(error).strip() or type(error).__name__).splitlines()
            why = f"the hub cannot be reached ({lines[0]})"
    if not cached:
        raise ModelSourceError(
            f"There is no folder {model}, the hub's cache {constants.HF_HUB_CACHE} does not have it, and {why}."
        )
    constants.HF_HUB_OFFLINE = True  # transformers would ask for every file, six times
    log.warning("%s; %s is taken from the hub's cache", why, model)
