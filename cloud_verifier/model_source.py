"""What --model names, looked at before torch is imported: a wrong name is refused at once, in one sentence."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from outrider.demo_pair import demo_folder

from cloud_verifier.engines.vllm.options import missing
from outrider_models.errors import ModelFileError
from outrider_models.file_choice import choose
from outrider_models.gguf_header import MAGIC, read_header
from outrider_models.hub_model import HUB, parse_hub
from outrider_models.runtime_build import LLAMA_CPP, is_installed, llama_cpp_install

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_TIMEOUT_S = 10.0
TORCH, LLAMA, VLLM = "torch", "llama.cpp", "vllm"  # engines
GGUF = ".gguf"
log = logging.getLogger(__name__)


class ModelSourceError(Exception):
    """A name of no model that could be served. The message says what was expected."""


def parse_models(values: Sequence[str], served_name: str | None) -> dict[str, str]:
    """What to serve by name, of NAME=MODEL or MODEL; `demo` is the demo pair's target. Raises ModelSourceError."""
    models: dict[str, str] = {}
    for value in values:
        name, equals, model = value.partition("=")
        if not equals or "/" in name:  # a folder may have the sign in its name, too
            name, model = value.rstrip("/").rpartition("/")[2].removesuffix(GGUF), value
        if not name or not model:
            raise ModelSourceError(f"--model {value}: expected NAME=MODEL or MODEL, a folder, a GGUF file or a hub id")
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


def engine_of(model: str, wanted: str) -> str:
    """The engine that serves a model: TORCH, LLAMA or VLLM. wanted: one of them, or "auto". Raises ModelSourceError."""
    own = LLAMA if _is_gguf(model) else TORCH
    if wanted in ("auto", own):
        return own
    if own == LLAMA:
        raise ModelSourceError(
            f"{model} is a GGUF model, which llama.cpp reads and {wanted} does not; leave --engine out."
        )
    if wanted == VLLM:
        return VLLM
    raise ModelSourceError(
        f"{model} is no GGUF model, and llama.cpp reads no other; give a .gguf file or {HUB}ORG/REPO[:QUANTIZATION], "
        "or leave --engine out."
    )


def check_model(model: str, engine: str) -> None:
    """What can be said of a model without loading it. Raises ModelSourceError.

    Where a hub id's model is not here, the hub is asked once. One that cannot be reached is not asked again by this
    process, and its cache is used.
    """
    if engine == VLLM and (why := missing()):
        raise ModelSourceError(why)
    if engine in (TORCH, VLLM):
        if check_path(model):
            _check_hub(model)
        return
    if not is_installed(LLAMA_CPP):
        raise ModelSourceError(
            f"{model} is served by llama.cpp, which is not installed here: {llama_cpp_install()} in a clone of "
            "Outrider (it compiles, which takes some minutes)."
        )
    try:
        parse_hub(model) if model.startswith(HUB) else read_header(_gguf_in(Path(model)))
    except ModelFileError as error:
        raise ModelSourceError(f"{error}.") from error


def gguf_file(model: str) -> Path:
    """The file of a GGUF model; one of the hub is downloaded if it is not here. Raises ModelSourceError."""
    try:
        if not model.startswith(HUB):
            return _gguf_in(Path(model))
        from outrider_models.hub import fetch

        return fetch(parse_hub(model), formats=("gguf",))
    except ModelFileError as error:
        raise ModelSourceError(f"{error}.") from error


def _is_gguf(model: str) -> bool:
    path = Path(model)
    if path.is_dir():
        return not (path / "config.json").is_file() and any(path.glob(f"*{GGUF}"))
    return model.startswith(HUB) or path.suffix == GGUF or _begins_as_gguf(path)


def _begins_as_gguf(file: Path) -> bool:
    """Whatever it is called: Ollama's models are named for their hashes."""
    try:
        with file.open("rb") as opened:
            return opened.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _gguf_in(path: Path) -> Path:
    """A file, or the one to take of a folder. Raises ModelFileError."""
    if not path.is_dir():
        return path
    return path / choose([file.name for file in path.glob(f"*{GGUF}")], None, f"the folder {path}", formats=("gguf",))


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
        raise ModelSourceError(
            f"{model} is a file, and not of GGUF; give the folder of a transformers model, its hub id, or a GGUF file."
        )
    if not _HUB_ID.fullmatch(model) or model.startswith("."):
        hub = "" if path.is_absolute() or model.startswith((".", "~")) else ", and a hub id is written ORG/NAME"
        raise ModelSourceError(f"There is no folder {model}{hub}.")
    return True


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
