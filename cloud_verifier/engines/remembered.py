"""What an engine's trials have found on this machine, remembered from one start to the next in the user's cache.

Choosing and the self-test take longer than everything else at a start, and find the same each time. So what they found
is kept under a key of all that decides it: the model's content, the engine's own source, libraries, CPU, threads,
settings. What was kept is not taken on trust: the engine that is made by it evaluates a few steps in company and alone,
which must agree, and have the very bits that they had on the day of the self-test (`quick_check`). If not, everything
is tried anew. Only engines that are strict are remembered.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs
import torch

from outrider_models.runtime_build import cpu_facts
from outrider_models.user_files import replace_file

_log = logging.getLogger(__name__)

MOST_OUTCOMES = 64
_MOST_BYTES = 1 << 20
_SETTINGS = ("ATEN_", "DNNL_", "GGML_", "GOMP_", "KMP_", "LLAMA_", "MKL_", "OMP_", "ONEDNN_", "TORCH_")


class Remembered:
    """One start's outcome: what was found under the same facts before, and what is to be found the next time."""

    def __init__(self, facts: object) -> None:
        """facts: what decides the outcome besides this machine and this code; JSON, or to be had as strings."""
        everything = [
            facts,
            _own_source(),
            cpu_facts(),
            torch.__version__,
            torch.__config__.parallel_info(),
            sorted((name, value) for name, value in os.environ.items() if name.startswith(_SETTINGS)),
        ]
        self._key = hashlib.sha256(json.dumps(everything, sort_keys=True, default=str).encode()).hexdigest()
        self._file = platformdirs.user_cache_path("outrider") / "self-tests.json"

    def get(self) -> dict[str, Any] | None:
        """None if nothing is known."""
        found = self._read().get(self._key)
        return found if isinstance(found, dict) else None

    def put(self, outcome: Mapping[str, object]) -> None:
        """Keep it, and the latest of the others. Where that cannot be, the next start tries again."""
        kept = self._read()
        kept.pop(self._key, None)
        kept[self._key] = dict(outcome)
        try:
            replace_file(self._file, json.dumps(dict(list(kept.items())[-MOST_OUTCOMES:]), indent=0).encode())
        except OSError as error:
            _log.debug("what the self-test found cannot be kept in %s: %s", self._file, error)

    def _read(self) -> dict[str, Any]:
        try:
            with self._file.open("rb") as opened:
                content = json.loads(opened.read(_MOST_BYTES))
        except (OSError, ValueError, RecursionError):  # not there, or damaged
            return {}
        return content if isinstance(content, dict) else {}


def _own_source() -> str:
    """A digest of the engines' code: with other code another outcome may be right."""
    whole = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()
