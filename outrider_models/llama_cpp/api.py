"""llama.cpp's C functions, by llama-cpp-python's low-level bindings, and its log: one callback per process."""

from __future__ import annotations

import ctypes
import sys
from collections import deque
from pathlib import Path
from typing import Any

from outrider_models.errors import ModelFileError
from outrider_models.gguf_header import GgufHeader
from outrider_models.runtime_build import llama_cpp_install

_ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR


class Log:
    """Where llama.cpp writes: its latest errors are kept for our messages, the rest is dropped unless asked for."""

    def __init__(self) -> None:
        self.verbose = False
        self.errors: deque[str] = deque(maxlen=4)
        self.callback: Any = None

    def attach(self, api: Any) -> None:
        """Take the log over; llama.cpp keeps a bare pointer, so the callback is made once and lives on."""
        if self.callback is None:
            self.callback = api.llama_log_callback(self._write)
        api.llama_log_set(self.callback, ctypes.c_void_p(0))

    def last_error(self) -> str:
        return "; ".join(self.errors) or "it gives no reason"

    def _write(self, level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
        line = text.decode("utf-8", "replace")
        if level == _ERROR_LEVEL:
            self.errors.append(line.strip())
        if self.verbose:
            sys.stderr.write(line)


LOG = Log()


def load_api(verbose: bool) -> Any:
    """The C functions, with the log in our hands. Raises ModelFileError if llama-cpp-python is not installed."""
    try:
        from llama_cpp import llama_cpp as api  # here and not above: it is optional and slow to import
    except ImportError as error:
        raise ModelFileError(
            f"a .gguf file needs llama-cpp-python: {llama_cpp_install('llama-cpp-python')} "
            "(it compiles llama.cpp, which takes some minutes)"
        ) from error
    LOG.verbose = verbose
    LOG.errors.clear()
    LOG.attach(api)
    api.llama_backend_init()  # may be called again
    return api


def check_types(api: Any, header: GgufHeader, path: Path) -> None:
    """An old llama.cpp reads a new quantization as damage; say what it is."""
    unknown = sorted(kind for kind in header.tensor_types if kind >= api.GGML_TYPE_COUNT)
    if unknown:
        raise ModelFileError(
            f"{path} has tensors of type {unknown[0]}, a quantization that the installed llama.cpp does not know; "
            "update llama-cpp-python or take another quantization"
        )
