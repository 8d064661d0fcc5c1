"""What a GGUF file says about itself before it is loaded: metadata and the types of its tensors.

Reads the first part of the file only and skips the long lists (token strings, merges), which the `gguf` package would
read into memory one by one. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import glob
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from outrider_models.errors import ModelFileError

MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_LONGEST_LIST = 4096  # layers have lists of this kind; vocabularies are longer and not wanted
_MOST = 1 << 32  # no file has more of anything: a larger count means a damaged file


@dataclass(frozen=True)
class GgufHeader:
    """metadata: scalars, strings and short lists by key. tensor_types: the ggml type numbers that occur. lengths: of
    every list, by key."""

    metadata: Mapping[str, Any]
    tensor_types: frozenset[int]
    lengths: Mapping[str, int]

    @property
    def architecture(self) -> str:
        """As llama.cpp calls it: llama, qwen2, gemma3, mamba..."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def vocabulary_size(self) -> int | None:
        """How many tokens its tokenizer has; None if it brings none."""
        return self.lengths.get("tokenizer.ggml.tokens")

    def number(self, key: str) -> int | None:
        """One of the architecture's own numbers; of a number per layer, the largest."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        if isinstance(value, list):
            value = max(value, default=None)
        return value if isinstance(value, int) else None

    def cache_bytes(self, context_tokens: int, bytes_per_number: float) -> int:
        """Size of the key-value cache, 0 if the metadata do not tell."""
        heads, width = self.number("attention.head_count"), self.number("embedding_length")
        layers = self.number("block_count")
        if not heads or not width or not layers:
            return 0
        kv_heads = self.number("attention.head_count_kv") or heads
        head = self.number("attention.key_length") or width // heads
        head += self.number("attention.value_length") or width // heads
        return int(layers * kv_heads * head * context_tokens * bytes_per_number)


def read_header(path: Path) -> GgufHeader:
    """Raises ModelFileError if the file cannot be opened, is no GGUF file, or ends too early."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
            if magic != MAGIC:
                raise ModelFileError(f"{path} is not a GGUF file: it begins with {magic!r}; expected {MAGIC!r}")
            return _read(file)
    except OSError as error:
        raise ModelFileError(f"cannot open {path}: {error.strerror}") from error
    except (struct.error, ValueError, OverflowError, MemoryError) as error:
        raise ModelFileError(f"{path} is damaged or incomplete: its header cannot be read; fetch it again") from error


def _read(file: BinaryIO) -> GgufHeader:
    _version, tensors, entries = _unpack(file, "<IQQ")
    metadata: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    for _ in range(_sane(entries)):
        key = _string(file)
        (kind,) = _unpack(file, "<I")
        if kind != _ARRAY:
            metadata[key] = _scalar(file, kind)
            continue
        element, lengths[key] = _unpack(file, "<IQ")
        if (values := _list(file, element, lengths[key])) is not None:
            metadata[key] = values
    types = set()
    for _ in range(_sane(tensors)):
        _string(file)
        (dimensions,) = _unpack(file, "<I")
        _skip(file, 8 * dimensions)
        types.add(_unpack(file, "<IQ")[0])
    return GgufHeader(metadata, frozenset(types), lengths)


def _scalar(file: BinaryIO, kind: int) -> Any:
    if kind in _SCALARS:
        return _unpack(file, _SCALARS[kind])[0]
    if kind == _STRING:
        return _string(file)
    raise ValueError(f"a value of unknown kind {kind}")


def _list(file: BinaryIO, element: int, count: int) -> list[Any] | None:
    """None, and nothing kept in memory, if it is a long one."""
    if count <= _LONGEST_LIST:
        return [_item(file, element) for _ in range(_sane(count))]
    if element in _SCALARS:
        _skip(file, _sane(count) * struct.calcsize(_SCALARS[element]))
        return None
    for _ in range(_sane(count)):
        _skip(file, _sane(_unpack(file, "<Q")[0]))
    return None


def _item(file: BinaryIO, kind: int) -> Any:
    """A list's; lists may lie in lists."""
    return _list(file, *_unpack(file, "<IQ")) if kind == _ARRAY else _scalar(file, kind)


def _string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "<Q")
    return _exactly(file, _sane(length)).decode("utf-8", "replace")


def _unpack(file: BinaryIO, shape: str) -> tuple[Any, ...]:
    return struct.unpack(shape, _exactly(file, struct.calcsize(shape)))


def _exactly(file: BinaryIO, count: int) -> bytes:
    content = file.read(count)
    if len(content) < count:
        raise ValueError("the file ends too early")
    return content


def _skip(file: BinaryIO, count: int) -> None:
    file.seek(count, 1)


def _sane(count: int) -> int:
    if count > _MOST:
        raise ValueError(f"a count of {count}")
    return count


def weight_files(path: Path) -> list[Path]:
    """The file, or all its pieces, that one first."""
    shard = re.search(r"-00001-of-(\d{5})\.gguf$", path.name)
    pieces = path.parent.glob(f"{glob.escape(path.name[: shard.start()])}-*-of-{shard[1]}.gguf") if shard else []
    return [path, *sorted(piece for piece in pieces if piece != path)]
