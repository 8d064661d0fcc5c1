"""The source distribution and the wheel: what is in them, and that the wheel alone does the work.

As `python -m build` does, the wheel is built from the source distribution. It is installed without dependencies into a
fresh environment that sees the packages of this one (but not this clone), so nothing is downloaded.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlab.verifier_process import READY

ROOT = Path(__file__).resolve().parents[2]
TOP_LEVEL = {"cloud_verifier", "edge_client", "netlab", "outrider", "outrider_cli", "outrider_models", "speculation"}
HOOKS = "import sys, hatchling.build; print(getattr(hatchling.build, sys.argv[1])(sys.argv[2]))"


def build(hook: str, source: Path, folder: Path) -> Path:
    """Call a PEP 517 hook in `source`; returns the file that it wrote to `folder`."""
    command = [sys.executable, "-c", HOOKS, hook, str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    archive = build("build_sdist", ROOT, folder)
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("build_wheel", source, tmp_path_factory.mktemp("wheel"))


class Installed:
    """The wheel in an environment of its own; commands run outside the clone."""

    def __init__(self, wheel: Path, folder: Path) -> None:
        venv.create(folder / "env", with_pip=False, symlinks=True)
        self._bin, self.elsewhere = folder / "env" / "bin", folder / "elsewhere"
        self.elsewhere.mkdir()
        (self.site,) = (folder / "env" / "lib").glob("python*/site-packages")
        # A path in a .pth file comes after the environment's own; .pth files in it (our editable install) are not read.
        others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        (self.site / "dependencies.pth").write_text("\n".join(others) + "\n")
        pip = [sys.executable, "-m", "pip", "--python", str(self._bin / "python"), "--disable-pip-version-check"]
        subprocess.run(
            [*pip, "install", "--quiet", "--no-deps", "--no-index", "--no-compile", str(wheel)],
            check=True,
            env=self.environment,
        )

    @property
    def environment(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PIP_CONSTRAINT": ""}

    def command(self, *words: str) -> list[str]:
        return [str(self._bin / words[0]), *words[1:]]

    def run(self, *words: str) -> str:
        """Standard output of a command that must succeed."""
        done = subprocess.run(
            self.command(*words),
            cwd=self.elsewhere,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(wheel, tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def verifier(installed: Installed) -> Iterator[str]:
    """Address of the installed verifier with the demo target."""
    with (
        (installed.elsewhere / "verifier.log").open("w+") as log,
        subprocess.Popen(
            installed.command("cloud-verifier", "serve", "--model", "demo", "--port", "0", "--threads", "1"),
            cwd=installed.elsewhere,
            env=installed.environment | {"OMP_WAIT_POLICY": "PASSIVE"},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as running,
    ):
        assert running.stdout is not None
        banner = running.stdout.readline()
        ready = READY.match(banner)
        try:
            assert ready is not None, banner + Path(log.name).read_text()
            yield f"127.0.0.1:{ready['port']}"
        finally:
            running.terminate()


def test_the_source_distribution_has_what_builds_and_tests_it(source: Path) -> None:
    assert {"LICENSE", "README.md", "pyproject.toml", "tests", "models", "benchmarks"} <= {
        path.name for path in source.iterdir()
    }


def test_the_wheel_installs_our_names_only(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    version = importlib.metadata.version("outrider")
    assert {name.partition("/")[0] for name in names} == TOP_LEVEL | {f"outrider-{version}.dist-info"}
    assert {f"{package}/py.typed" for package in TOP_LEVEL} <= {*names}
    assert not [name for name in names if name.endswith(".pyc") or "/tests/" in name]


def test_the_wheel_brings_what_is_no_python(wheel: Path) -> None:
    """The page, the contract, profiles of networks, the demo pair: all that lies in the packages."""
    with zipfile.ZipFile(wheel) as file:
        names = {*file.namelist()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:  # built from a source distribution: then the folders are what there is
        files = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file()]
    else:
        files = tracked.stdout.split("\n")
    ours = {name.removeprefix("proto/") for name in files if name.removeprefix("proto/").partition("/")[0] in TOP_LEVEL}
    ours = {name for name in ours if "__pycache__" not in name}
    assert ours - names == set()
    for part in ("target/model.safetensors", "drafter-onnx/model.onnx", "drafter.gguf"):
        assert f"outrider/demo/{part}" in names


def test_commands_answer_outside_the_clone(installed: Installed) -> None:
    version = importlib.metadata.version("outrider")
    for command in ("edge-client", "cloud-verifier", "netlab"):
        assert version in installed.run(command, "--version")
        assert "Usage:" in installed.run(command, "--help")


def test_every_package_comes_from_the_wheel(installed: Installed) -> None:
    code = f"import {', '.join(sorted(TOP_LEVEL))}\nfor each in {sorted(TOP_LEVEL)}: print(globals()[each].__file__)"
    files = installed.run("python", "-c", code).split()
    assert all(Path(file).is_relative_to(installed.site) for file in files), files
    code = "from outrider.demo_pair import demo_folder; print(demo_folder())"
    assert installed.run("python", "-c", code).strip() == str(installed.site / "outrider" / "demo")


def test_the_demo_pair_answers(installed: Installed, verifier: str) -> None:
    asked = ("--verifier", verifier, "--drafter", "demo")
    assert "drafter" in installed.run("edge-client", "doctor", *asked)
    options = ("--message", "Find me a hotel", "--max-tokens", "16", "--temperature", "0", "--json")
    output = json.loads(installed.run("edge-client", "generate", *asked, *options))
    assert output["text"]
    assert output["metrics"]["drafted_tokens"] > 0
    code = f"""
from outrider import EdgeClient, SamplingParams
with EdgeClient({verifier!r}, "demo") as client:
    print(len(client.generate("I need a taxi.", SamplingParams(max_tokens=8, ignore_eos=True)).token_ids))
"""
    assert installed.run("python", "-c", code).strip() == "8"
