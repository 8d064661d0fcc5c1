"""Which build of a runtime, on which CPU: what decides whether its machine code runs here. Imports no runtime."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
from pathlib import Path

from outrider_cli.extras import install

LLAMA_CPP, ONNX_RUNTIME = "llama_cpp", "onnxruntime"
DISTRIBUTIONS = {LLAMA_CPP: "llama-cpp-python"}  # where that is not the module's name
_FOLDERS = ("", "bin", "lib", "capi")  # of a package, with its native libraries
_SUFFIXES = (".so", ".dylib", ".dll", ".pyd")
_CPUINFO = Path("/proc/cpuinfo")
_CPUINFO_BYTES = 1 << 14  # the first CPU's part; to tell all of them takes the kernel milliseconds on a large machine
_CPU_FACTS = (
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),  # on x86
    *("Features", "CPU implementer", "CPU architecture", "CPU variant", "CPU part"),  # on ARM
)
_DRIVER = Path("/proc/driver/nvidia/version")

# ggml fills the configuration of AMX's tiles on the stack and loads it by an intrinsic of which gcc 12 believes that it
# reads 8 bytes. The stores are optimised away, and the first tile instruction is illegal (llama.cpp, pull request
# 26954). Without the macro ggml leaves AMX alone. pip's cache would hand out a wheel that was built without the flags.
AMX_FLAGS = "CFLAGS=-U__AMX_INT8__ CXXFLAGS=-U__AMX_INT8__"
_AMX_MARK = b"AMX is not ready to be used!"  # what the code for it prints where the kernel refuses


def file_facts(path: str | Path) -> tuple[str, int, int]:
    """Its path, bytes and time of change in nanoseconds: what tells that it is the file it was. Raises OSError."""
    found = os.stat(path)
    return os.path.abspath(path), found.st_size, found.st_mtime_ns


def is_installed(package: str) -> bool:
    """Whether there is such a package to import."""
    return bool(_package_folders(package))


def native_libraries(package: str) -> list[str]:
    """Paths of the shared libraries that a package brings; empty if it is not installed."""
    found: list[str] = []
    for folder in _package_folders(package):
        with contextlib.suppress(OSError):
            found += [os.path.join(folder, name) for name in os.listdir(folder) if any(s in name for s in _SUFFIXES)]
    return sorted(found)


def _package_folders(package: str) -> list[str]:
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # something else goes by that name in this process
        return []
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    folders = [os.path.join(place, name) for place in places for name in _FOLDERS]
    if package == LLAMA_CPP and (elsewhere := os.environ.get("LLAMA_CPP_LIB_PATH")):
        folders.append(elsewhere)
    return folders


def cpu_facts() -> dict[str, str]:
    """Model and instruction sets of this CPU, under the kernel's names; elsewhere what Python knows."""
    try:
        with _CPUINFO.open("rb") as file:
            lines = file.read(_CPUINFO_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    facts: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon and name.strip() in _CPU_FACTS:
            facts.setdefault(name.strip(), value.strip())
    return facts or {"machine": platform.machine(), "processor": platform.processor()}


def gpu_driver() -> str:
    """NVIDIA's, which can be replaced under a runtime that stays; empty if there is none."""
    try:
        return _DRIVER.read_text()
    except OSError:
        return ""


def has_amx() -> bool:
    """Whether this CPU has AMX for 8-bit integers (Intel's servers since 2023)."""
    return "amx_int8" in cpu_facts().get("flags", "").split()


def uses_amx() -> bool:
    """Whether the installed llama.cpp has ggml's code for AMX."""
    cpu_libraries = (path for path in native_libraries(LLAMA_CPP) if "ggml-cpu" in path)
    return any(_AMX_MARK in Path(path).read_bytes() for path in cpu_libraries)


def runtime_install(module: str) -> str:
    """How to get a runtime."""
    if module == ONNX_RUNTIME:
        return install("edge")
    return f"{llama_cpp_install()} in a clone of Outrider; it compiles llama.cpp, which takes minutes"


def build_risk() -> str:
    """Why the installed llama.cpp may end a process on this CPU without a word, and what helps; empty as a rule."""
    if not (has_amx() and uses_amx()):
        return ""
    return f"it was built with AMX: if it ends with SIGILL, compile it anew: {llama_cpp_reinstall()}"


def llama_cpp_install(what: str = "'.[llama]'") -> str:
    """The command that compiles llama.cpp for this CPU. what: pip is to install."""
    return f"{AMX_FLAGS} pip install --no-cache-dir {what}" if has_amx() else f"pip install {what}"


def llama_cpp_reinstall() -> str:
    """The command that compiles an installed llama.cpp anew, for this CPU."""
    flags = f"{AMX_FLAGS} " if has_amx() else ""
    return f"{flags}pip install --no-cache-dir --force-reinstall --no-deps llama-cpp-python"
