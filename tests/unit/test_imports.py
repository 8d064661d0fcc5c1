"""Who may import whom: read from the source, so that imports within functions count, too."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import outrider
import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = {
    "cloud_verifier": ROOT,
    "edge_client": ROOT,
    "netlab": ROOT,
    "outrider": ROOT / "proto",
    "outrider_cli": ROOT,
    "outrider_models": ROOT,
    "speculation": ROOT,
}
REPOSITORY_ONLY = {"benchmarks", "examples", "models", "tests"}
# package: what none of its files may import
FORBIDDEN = {
    "speculation": {*SHIPPED, "grpc", "torch"} - {"speculation"},
    "edge_client": {"cloud_verifier", "netlab", "torch", "transformers"},
    "cloud_verifier": {"edge_client", "netlab", "llama_cpp", "onnxruntime"},
    "outrider": {"cloud_verifier", "netlab", "torch"},
    "outrider_cli": {"cloud_verifier", "edge_client", "netlab", "outrider", "torch"},
    "outrider_models": {"cloud_verifier", "edge_client", "netlab", "torch", "transformers"},
}
EXPORT = "edge_client.export"  # makes drafters of transformers models, so it needs torch


def modules() -> dict[str, Path]:
    """File by module name, of all that is shipped."""
    found = {}
    for package, base in SHIPPED.items():
        for file in (base / package).rglob("*.py"):
            parts = file.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def imported(file: Path, *, late: bool) -> Iterator[str]:
    """Modules that a file imports, those for types included. late: also within functions."""
    waiting: list[ast.AST] = [ast.parse(file.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None  # relative imports are banned
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in names)
        waiting += [
            child
            for child in ast.iter_child_nodes(node)
            if late or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        ]


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Late imports count, but for those of the trial of a runtime, whose child process loads the drafter it tries."""
    front_doors = {"outrider"}  # it names what lies behind it
    trial = "edge_client.drafters.runtime_trial"
    graph = {
        module: {name for name in imported(file, late=module != trial) if name in MODULES and name != module}
        for module, file in MODULES.items()
        if module not in front_doors
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_stay_on_their_side(package: str) -> None:
    wrong = [
        f"{module} imports {name}"
        for module, file in MODULES.items()
        if module.partition(".")[0] == package and not f"{module}.".startswith(f"{EXPORT}.")
        for name in imported(file, late=True)
        if name.partition(".")[0] in FORBIDDEN[package]
    ]
    assert not wrong


@pytest.mark.parametrize(("side", "other"), [("cloud_verifier", "edge_client"), ("edge_client", "cloud_verifier")])
def test_neither_side_reaches_the_other_through_a_third_package(side: str, other: str) -> None:
    waiting = [module for module in MODULES if module.partition(".")[0] == side]
    reached = set(waiting)
    while waiting:
        module = waiting.pop()
        if module != "outrider":  # the front door, through which nobody goes for the contract
            new = {name for name in imported(MODULES[module], late=True) if name in MODULES} - reached
            reached |= new
            waiting += new
    assert not [module for module in reached if module.partition(".")[0] == other]


def test_the_doctor_needs_nothing_of_the_setup_that_calls_it() -> None:
    assert not [name for name in imported(MODULES["edge_client.doctor"], late=True) if "edge_client.setup" in name]


def test_what_is_shipped_needs_nothing_of_the_repository() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, file in MODULES.items()
        for name in imported(file, late=True)
        if name.partition(".")[0] in REPOSITORY_ONLY
    ]
    assert not wrong


def loaded_by(statement: str) -> set[str]:
    """Top-level names in sys.modules after a statement, in a fresh interpreter."""
    code = f"{statement}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


@pytest.mark.parametrize("package", ["outrider", "edge_client", "edge_client.cli", "cloud_verifier.cli", "netlab.cli"])
def test_importing_a_front_door_is_cheap(package: str) -> None:
    """`--help` must not wait for any of these, and an application that imports the API pays when it uses it."""
    heavy = {"google", "grpc", "llama_cpp", "numpy", "onnxruntime", "torch", "transformers"}
    assert not loaded_by(f"import {package}") & heavy


def test_all_of_the_device_together_never_loads_torch() -> None:
    """Neither do the packages that it imports."""
    device = [name for name in MODULES if name.startswith("edge_client.") and not name.startswith(EXPORT)]
    device = [name for name in device if not name.endswith("__main__")]
    assert not loaded_by(f"import {', '.join(device)}") & {"torch", "transformers"}


def test_every_name_of_the_public_api_is_there() -> None:
    assert {*outrider.__all__} <= {*dir(outrider)}
    assert {*outrider.__all__} == {*outrider._HOMES, "__version__"}
    for name, home in outrider._HOMES.items():
        assert getattr(outrider, name) is vars(importlib.import_module(home))[name]
    assert outrider.__version__
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = outrider.Nothing
