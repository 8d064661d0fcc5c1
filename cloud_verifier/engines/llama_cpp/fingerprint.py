"""What decides the words of a GGUF target: engines whose fingerprints are equal compute the same."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import NamedTuple

from cloud_verifier.engines.llama_cpp.engine import LlamaCppEngine
from outrider_models.gguf_header import weight_files
from outrider_models.runtime_build import LLAMA_CPP, cpu_facts, native_libraries

_PART_BYTES = 1 << 26


class Contents(NamedTuple):
    """Digests of what is on the disk. model: of all its files, in hex. build: of each of llama.cpp's libraries."""

    model: str
    build: list[str]


def contents(path: Path) -> Contents:
    """path: of a model in pieces, the first. Raises OSError."""
    whole = hashlib.sha256()
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib lets go of the interpreter lock
        for digest in pool.map(_digest, _parts(weight_files(path)), chunksize=1):
            whole.update(digest)
        libraries = [digest.hex() for digest in pool.map(_digest, _parts(map(Path, native_libraries(LLAMA_CPP))))]
    return Contents(whole.hexdigest(), libraries)


def fingerprint(engine: LlamaCppEngine, threads: int, found: Contents) -> str:
    """sha256, in hex, over the file's content, the build of llama.cpp, kind of device, strictness and threads."""
    cpu = cpu_facts()
    settings = {
        "model": found.model,
        "strict": [engine.info.strict, *astuple(engine.rows)],
        "loading": astuple(engine.model.loading),
        "device": [cpu.get(name) for name in ("model name", "flags", "Features", "machine")],
        "threads": threads,
        "build": found.build,
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _parts(files: Iterator[Path] | list[Path]) -> Iterator[tuple[Path, int]]:
    """Each file in parts that are read and digested side by side."""
    for file in files:
        for start in range(0, max(1, file.stat().st_size), _PART_BYTES):
            yield file, start


def _digest(part: tuple[Path, int]) -> bytes:
    file, start = part
    with file.open("rb") as opened:
        opened.seek(start)
        return hashlib.sha256(opened.read(_PART_BYTES)).digest()
