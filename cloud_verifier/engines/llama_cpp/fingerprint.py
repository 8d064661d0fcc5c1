"""What decides the words of a GGUF target: engines whose fingerprints are equal compute the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import astuple
from pathlib import Path
from typing import NamedTuple

from cloud_verifier.engines.file_digest import digests
from cloud_verifier.engines.llama_cpp.engine import LlamaCppEngine
from outrider_models.gguf_header import weight_files
from outrider_models.runtime_build import LLAMA_CPP, cpu_facts, native_libraries


class Contents(NamedTuple):
    """Digests of what is on the disk. model: of all its files, in hex. build: of each of llama.cpp's libraries."""

    model: str
    build: list[str]


def contents(path: Path) -> Contents:
    """path: of a model in pieces, the first. Raises OSError."""
    whole = hashlib.sha256()
    for digest in digests(weight_files(path)):
        whole.update(digest)
    return Contents(whole.hexdigest(), [digest.hex() for digest in digests(map(Path, native_libraries(LLAMA_CPP)))])


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
