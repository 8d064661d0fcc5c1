"""What a model's files hold, as one digest: files are read in parts, side by side."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_PART_BYTES = 1 << 26


def digests(files: Iterable[Path]) -> Iterator[bytes]:
    """sha256 of each part of each file, in order; a part has 64 MiB."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib lets go of the interpreter lock
        yield from pool.map(_digest, _parts(files), chunksize=1)


def _parts(files: Iterable[Path]) -> Iterator[tuple[Path, int]]:
    for file in files:
        for start in range(0, max(1, file.stat().st_size), _PART_BYTES):
            yield file, start


def _digest(part: tuple[Path, int]) -> bytes:
    file, start = part
    with file.open("rb") as opened:
        opened.seek(start)
        return hashlib.sha256(opened.read(_PART_BYTES)).digest()
