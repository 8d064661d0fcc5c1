"""Which file of a model's folder or repository to open. Pure: names in, names out.

Publishers put many quantizations of one model side by side and say in the file's name which is which:
``SmolLM2-135M-Instruct-Q4_K_M.gguf``, ``onnx/model_q4f16.onnx``, ``cpu_and_mobile/cpu-int4-rtn-block-32/model.onnx``.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import PurePosixPath

from outrider_models.errors import ModelFileError

# Best first: small enough for a device, and still the source's words.
GGUF_ORDER = ("q4_k_m", "q4_k_s", "q4_0", "q5_k_m", "q5_k_s", "iq4_xs", "iq4_nl", "q6_k", "q8_0", "f16", "bf16", "f32")
ONNX_ORDER = ("q4", "int4", "quantized", "int8", "", "fp32", "q4f16", "fp16", "uint8", "bnb4")  # "": a plain model.onnx
PLAIN = "model.onnx"
FORMATS = ("gguf", "onnx")
_NOT_THE_MODEL = re.compile(
    r"mmproj|imatrix|(^|/)(vision|audio|text)_?(encoder|model)|embed_tokens|(^|/)encoder_model|decoder_model(?!_merged)",
    re.IGNORECASE,
)
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_TOKENIZER_AND_CONFIG = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "genai_config.json",
)
_LISTED = 12


def choose(
    files: Collection[str],
    wanted: str | None,
    place: str,
    *,
    local: bool = False,
    formats: Collection[str] = FORMATS,
) -> str:
    """The file to load among `files` (paths with "/"); of a model in pieces, the first piece.

    wanted: a path, a file's name, a folder, or a quantization in any spelling; None takes the best default. place: for
    messages. local: somebody put the folder together, so a file named model.onnx is the one that is meant. formats: of
    those that will do. Raises ModelFileError with what there is.
    """
    models = [file for file in sorted(files) if is_model(file) and _format(file) in formats]
    if not models:
        lacking = " and ".join(f"no .{kind}" for kind in FORMATS if kind in formats)
        raise ModelFileError(f"{place} has {lacking} file{_other_weights(files)}")
    if wanted is not None:
        return _wanted(models, files, wanted, place)
    plain = [file for file in models if PurePosixPath(file).name == PLAIN]
    if local and plain:
        return min(plain, key=lambda file: (file.count("/"), file))
    ours = [file for file in models if _format(file) == _preferred_format(models)]
    order = GGUF_ORDER if _format(ours[0]) == "gguf" else ONNX_ORDER
    ranked = [(order.index(name), file) for file in ours if (name := quantization(file)) in order]
    if len(ours) == 1:
        return ours[0]
    best = [file for rank, file in ranked if rank == min(ranked)[0]]
    if len(best) == 1:
        return best[0]
    raise ModelFileError(
        f"{place} has several models and none is the obvious one: {listed(best or ours)}; name one of them"
    )


def companions(file: str, files: Iterable[str]) -> list[str]:
    """What `file` cannot be loaded without, of what there is: other pieces, external data, tokenizer and configs."""
    if shard := _SHARD.search(file):
        pieces = re.compile(re.escape(file[: shard.start()]) + rf"-\d{{5}}-of-{shard[2]}\.gguf")
        return [other for other in files if other != file and pieces.fullmatch(other)]
    if _format(file) == "gguf":
        return []
    folder = PurePosixPath(file).parent
    homes = {str(folder / name) for name in _TOKENIZER_AND_CONFIG} | set(_TOKENIZER_AND_CONFIG)
    data = (f"{file}_data", f"{file}.data")
    return [other for other in files if other in homes or other.startswith(data)]


def quantization(file: str) -> str:
    """The quantization in a file's name (or of a folder named for it), lower case; empty if it names none."""
    name = _SHARD.sub(".gguf", file).rpartition(".")[0]
    known: dict[str, str] = {_plain(q): q for q in (*GGUF_ORDER, *ONNX_ORDER) if q}
    for part in (PurePosixPath(name).name, PurePosixPath(name).parent.name):
        words = _plain(part).split("_")
        for length in (3, 2, 1):
            for start in range(len(words) - length, -1, -1):
                text = "_".join(words[start : start + length])
                if text in known or re.fullmatch(r"i?q\d(_\w+)?|tq\d_\d", text):
                    return known.get(text, text)
    return ""


def listed(files: Sequence[str]) -> str:
    """File names for a message, at most a dozen."""
    more = f" and {len(files) - _LISTED} more" if len(files) > _LISTED else ""
    return ", ".join(files[:_LISTED]) + more


def _wanted(models: Sequence[str], files: Collection[str], wanted: str, place: str) -> str:
    if wanted in files and not is_model(wanted):
        raise ModelFileError(f"{wanted} in {place} is no .gguf or .onnx file; there are {listed(models)}")
    spelled = _plain(wanted)
    tests: tuple[Callable[[str], bool], ...] = (
        lambda file: file == wanted,
        lambda file: PurePosixPath(file).name == wanted,
        lambda file: str(PurePosixPath(file).parent) == wanted.rstrip("/"),
        lambda file: _plain(quantization(file)) == spelled,
        lambda file: f"_{spelled}_" in f"_{_plain(file.rpartition('.')[0])}_",
    )
    for test in tests:
        found = [file for file in models if test(file)]
        if len(found) > 1:
            found = [file for file in found if _format(file) == _preferred_format(found)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ModelFileError(f"{wanted!r} fits several files of {place}: {listed(found)}; name one of them")
    raise ModelFileError(f"{place} has no {wanted!r}; there are {listed(models)}")


def is_model(file: str) -> bool:
    """Whether a file's name says that a model can be opened by it: no later piece, no encoder of pictures."""
    shard = _SHARD.search(file)
    first = shard is None or int(shard[1]) == 1
    return bool(_format(file)) and first and not _NOT_THE_MODEL.search(file)


def _format(file: str) -> str:
    return next((kind for kind in FORMATS if file.endswith(f".{kind}")), "")


def _preferred_format(models: Iterable[str]) -> str:
    """Of the formats there are, the one this device can run; GGUF if both or neither."""
    formats = {_format(file) for file in models}
    runnable = [kind for kind, module in (("gguf", "llama_cpp"), ("onnx", "onnxruntime")) if _installed(module)]
    return next(kind for kind in (*runnable, "gguf", "onnx") if kind in formats)


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _other_weights(files: Collection[str]) -> str:
    if any(file.endswith((".safetensors", "pytorch_model.bin")) for file in files):
        return (
            ", only weights for transformers; look for the same model with -GGUF or -ONNX in its name, "
            "or make a drafter of it with `edge-client export`"
        )
    return f"; it has {listed(sorted(files))}" if files else ""
