"""How to drive an exported causal language model, read from the graph's own inputs and outputs.

Exporters agree on much and differ in the rest. Known here are the graphs of optimum and the Hugging Face hub (with or
without position ids, merged decoders with a `use_cache_branch`, `num_logits_to_keep`), of `torch.onnx.export`, and of
the model builder of onnxruntime-genai, whose genai_config.json tells the names.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_client.drafters.base import DrafterError
from speculation.vocabulary.vocabulary import Vocabulary

TOKENIZER_FILE = "tokenizer.json"
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_SCALAR_TYPES = _INTEGERS | {"tensor(bool)": np.bool_}
# Single numbers that some graphs want: from positions before and after the call.
_SCALARS: dict[str, Callable[[int, int], int]] = {
    "use_cache_branch": lambda start, _total: start > 0,
    "num_logits_to_keep": lambda _start, _total: 1,
    "past_sequence_length": lambda start, _total: start,
    "total_sequence_length": lambda _start, total: total,
}
_RECURRENT = re.compile(r"conv|ssm|recurrent|rwkv|(^|[._])state", re.IGNORECASE)


@dataclass(frozen=True)
class FolderConfig:
    """What graphs leave symbolic or name in their own way, as far as genai_config.json or config.json tell.

    names: of inputs and outputs where they are not the usual ones, by usual name. share_buffer: False if past and
    present must be two buffers.
    """

    context_tokens: int | None = None
    vocabulary_size: int | None = None
    layers: int | None = None
    kv_heads: int | None = None
    head_size: int | None = None
    names: dict[str, str] = field(default_factory=dict)
    share_buffer: bool = True

    def cache_bytes(self, context_tokens: int) -> int:
        """Of keys and values in float32, 0 if unknown."""
        return 8 * (self.layers or 0) * (self.kv_heads or 0) * (self.head_size or 0) * context_tokens


@dataclass(frozen=True)
class Cache:
    """One tensor of past keys or values, shape [1, heads, positions, width]. positions: 0 if they grow."""

    past: str
    present: str
    heads: int
    width: int
    positions: int
    dtype: type[np.floating]


@dataclass(frozen=True)
class Scalar:
    """A number that a graph wants with every call. value: from (positions before, positions after)."""

    name: str
    array: npt.NDArray[Any]
    value: Callable[[int, int], int]


@dataclass(frozen=True)
class Graph:
    """What the graph wants and gives. last_row_only: its logits are those of the last token, shape [1, 1, V].

    shared: past and present are one buffer that is written in place. positions and mask are None if not asked for.
    """

    ids: str
    mask: str | None
    positions: str | None
    logits: str
    caches: list[Cache]
    scalars: list[Scalar]
    vocabulary_size: int
    last_row_only: bool
    shared: bool
    logits_dtype: type[np.floating]
    dtypes: dict[str, type[np.integer]]  # of the integer inputs


def read_graph(session: Any, config: FolderConfig, file: Path) -> Graph:
    """Raises DrafterError unless the session is a causal language model with a key-value cache that can be cut."""
    inputs = {node.name: node for node in session.get_inputs()}
    outputs = {node.name: node for node in session.get_outputs()}
    named = {
        usual: config.names.get(usual, usual) for usual in ("input_ids", "attention_mask", "position_ids", "logits")
    }
    ids, logits = named["input_ids"], named["logits"]
    pairs = _pairs(list(inputs), config.names)
    scalars = [name for name in _SCALARS if name in inputs]
    known = {*named.values(), *pairs, *scalars}
    strange = [name for name in inputs if name not in known]
    missing = [] if ids in inputs else [f"input {ids}"]
    missing += [] if pairs else ["inputs past_key_values.N.key and past_key_values.N.value"]
    missing += [f"output {name}" for name in (logits, *pairs.values()) if name not in outputs]
    if any(_RECURRENT.search(name) for name in strange):
        raise DrafterError(
            f"{file} keeps a recurrent state ({', '.join(strange[:3])}), which cannot drop its last tokens, and a "
            "drafter must do so at every wrong guess; use a model with plain attention"
        )
    if missing or strange:
        parts = [f"has no {', no '.join(missing)}"] if missing else []
        parts += [f"asks for unknown input {', '.join(strange)}"] if strange else []
        raise DrafterError(
            f"{file} {' and '.join(parts)}; expected a causal language model exported with its key-value cache "
            "(text-generation-with-past, or the onnxruntime-genai model builder)"
        )
    caches = [_cache(inputs[past], present, config, file) for past, present in pairs.items()]
    in_place = _mentions_group_query_attention(file)
    if any(cache.positions for cache in caches) and not in_place:
        raise DrafterError(
            f"{file} has a cache of a fixed {caches[0].positions} positions without GroupQueryAttention; "
            "expected one that grows, or one that is written in place"
        )
    return Graph(
        ids=ids,
        mask=named["attention_mask"] if named["attention_mask"] in inputs else None,
        positions=named["position_ids"] if named["position_ids"] in inputs else None,
        logits=logits,
        caches=caches,
        scalars=[_scalar(inputs[name], file) for name in scalars],
        vocabulary_size=_number(outputs[logits].shape[-1], "vocabulary_size", config, file),
        last_row_only=outputs[logits].shape[1] == 1 or "num_logits_to_keep" in scalars,
        shared=in_place and (config.share_buffer or any(cache.positions for cache in caches)),
        logits_dtype=_dtype(outputs[logits], _FLOATS, file),
        dtypes={
            name: _dtype(inputs[name], _INTEGERS, file)
            for name in (named["input_ids"], named["attention_mask"], named["position_ids"])
            if name in inputs
        },
    )


def _pairs(inputs: list[str], names: dict[str, str]) -> dict[str, str]:
    """Past inputs and their present outputs, by the config's patterns or the usual ones."""
    kinds = (("past_key_names", "present_key_names"), ("past_value_names", "present_value_names"))
    if all(name in names for kind in kinds for name in kind):
        pairs = {}
        for past, present in kinds:
            pattern = re.compile(re.escape(names[past]).replace("%d", r"(\d+)"))
            for name in inputs:
                if found := pattern.fullmatch(name):
                    pairs[name] = names[present].replace("%d", found[1])
        return pairs
    prefix = "past_key_values."
    return {name: f"present.{name.removeprefix(prefix)}" for name in inputs if name.startswith(prefix)}


def _cache(node: Any, present: str, config: FolderConfig, file: Path) -> Cache:
    shape = node.shape
    if len(shape) != 4:
        raise DrafterError(f"{file}: {node.name} has {len(shape)} axes; expected [batch, heads, positions, head size]")
    return Cache(
        past=node.name,
        present=present,
        heads=_number(shape[1], "kv_heads", config, file),
        width=_number(shape[3], "head_size", config, file),
        positions=shape[2] if isinstance(shape[2], int) else 0,
        dtype=_dtype(node, _FLOATS, file),
    )


def _scalar(node: Any, file: Path) -> Scalar:
    return Scalar(node.name, np.zeros([1] * len(node.shape), _dtype(node, _SCALAR_TYPES, file)), _SCALARS[node.name])


def _number(size: Any, name: str, config: FolderConfig, file: Path) -> int:
    known = size if isinstance(size, int) else getattr(config, name)
    if known is None:
        raise DrafterError(f"{file} leaves {name} open; put the model's config.json or genai_config.json beside it")
    return int(known)


def _dtype(node: Any, known: dict[str, Any], file: Path) -> Any:
    if node.type not in known:
        raise DrafterError(f"{file}: {node.name} is {node.type}; known are {', '.join(known)}")
    return known[node.type]


def _mentions_group_query_attention(file: Path) -> bool:
    """Operator names stand in the file as plain text, so finding one needs no ONNX parser on the device."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"GroupQueryAttention") >= 0


# --- the files beside the graph ---------------------------------------------------------------------------------


def read_vocabulary(file: Path) -> Vocabulary:
    """The vocabulary beside a .onnx file, or one folder above it, as the hub has it. Raises DrafterError."""
    tokenizer = beside(file, TOKENIZER_FILE)
    if tokenizer is None:
        raise DrafterError(
            f"the folder {file.parent} has no {TOKENIZER_FILE}; copy it from the model's original repository: "
            "without it nobody can tell whether drafter and target share a vocabulary"
        )
    try:
        return Vocabulary.of_tokenizer(read_json(tokenizer))
    except ValueError as error:
        raise DrafterError(f"{tokenizer}: {error}") from error


def read_folder_config(file: Path) -> FolderConfig:
    """From genai_config.json or config.json, whichever is nearer. Raises DrafterError if one cannot be used."""
    genai, transformers = beside(file, "genai_config.json"), beside(file, "config.json")
    if genai is not None:
        return _from_genai(read_json(genai))
    return _from_transformers(read_json(transformers), transformers) if transformers is not None else FolderConfig()


def beside(file: Path, name: str) -> Path | None:
    """A file in the model's folder or, as in repositories of the hub with a folder onnx/, in one above it."""
    homes = [file.parent, file.parent.parent] if file.parent.name == "onnx" else [file.parent]
    return next((home / name for home in homes if (home / name).is_file()), None)


def _from_genai(config: dict[str, Any]) -> FolderConfig:
    model = config.get("model") or {}
    decoder = model.get("decoder") or {}
    names = {**(decoder.get("inputs") or {}), **(decoder.get("outputs") or {})}
    return FolderConfig(
        context_tokens=_integer(model.get("context_length")),
        vocabulary_size=_integer(model.get("vocab_size")),
        layers=_integer(decoder.get("num_hidden_layers")),
        kv_heads=_integer(decoder.get("num_key_value_heads")),
        head_size=_integer(decoder.get("head_size")),
        names={usual: name for usual, name in names.items() if isinstance(name, str)},
        share_buffer=(config.get("search") or {}).get("past_present_share_buffer") is not False,
    )


def _from_transformers(config: dict[str, Any], file: Path) -> FolderConfig:
    architectures = config.get("architectures") or []
    causal = [name for name in architectures if re.search("CausalLM|LMHead|ConditionalGeneration", name)]
    if config.get("is_encoder_decoder") or (architectures and not causal):
        raise DrafterError(f"{file} describes {', '.join(architectures)}; expected a causal language model")
    config = {**config, **(config.get("text_config") or {})}
    heads = _integer(config.get("num_attention_heads") or config.get("n_head"))
    width = _integer(config.get("hidden_size") or config.get("n_embd"))
    return FolderConfig(
        context_tokens=_integer(config.get("max_position_embeddings") or config.get("n_positions")),
        vocabulary_size=_integer(config.get("vocab_size")),
        layers=_integer(config.get("num_hidden_layers") or config.get("n_layer")),
        kv_heads=_integer(config.get("num_key_value_heads")) or heads,
        head_size=_integer(config.get("head_dim")) or (width // heads if width and heads else None),
    )


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) else None


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises DrafterError."""
    try:
        parsed = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DrafterError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise DrafterError(f"{file} holds a {type(parsed).__name__}; expected a JSON object")
    return parsed
