"""A folder of results that grows cell by cell: what is finished is safe, what is missing can be run later.

::

    manifest.json      the grid, and every run that added to the folder: commit, date, machine, package versions
    cells/KEY.parquet  a finished cell's rows; KEY tells its conditions
    results.parquet    all of them in the grid's order, once the last cell is finished

Rows of different code or of different grids are not comparable, so a folder takes them from one commit and one grid
only, unless it is told to mix; every row carries its commit in any case.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import types
import typing
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from netlab import provenance
from netlab.experiments.grid import Cell, Grid
from netlab.experiments.rows import Row

FORMAT, VERSION = "outrider-sweep", 1
MANIFEST, CELLS, RESULTS = "manifest.json", "cells", "results.parquet"
PACKAGES = ("outrider", "numpy", "simpy", "pyarrow", "grpcio", "onnxruntime", "torch", "transformers")
_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


class StoreError(ValueError):
    """A folder that cannot take these results, or holds none. The message is a sentence that says what to do."""


class Store:
    """A sweep's folder, opened for one run."""

    def __init__(self, folder: Path, grid: Grid, mode: str, *, allow_mixed: bool = False) -> None:
        """Begin a folder or go on with one; nothing is written before the first `add`.

        Raises StoreError if the folder holds other results, or the same grid of other or unknown code.
        """
        self.folder, self.commit = folder, provenance.commit()
        self._begun = False
        self.cells = grid.cells()
        described = {"mode": mode, "grid": _plain(grid.as_json()), "files": _digests(grid)}
        earlier = _read_manifest(folder)
        if earlier is not None:
            for name, digest in described["files"].items():
                if earlier["files"].get(name, digest) != digest:
                    raise StoreError(f"{folder} holds results of another {name}; choose another folder")
            if not allow_mixed:
                self._refuse_other(earlier, described)
        run = {
            "commit": self.commit,
            "date": provenance.today(),
            "hardware": provenance.hardware(),
            "packages": _packages(),
            "seeds": list(grid.seeds),
            **described,
        }
        runs = [] if earlier is None else earlier["runs"]
        self._manifest = {"format": FORMAT, "version": VERSION, **described, "runs": [*runs, run]}
        self._manifest["cells"] = [cell.key for cell in self.cells]

    def _refuse_other(self, earlier: dict[str, Any], described: dict[str, Any]) -> None:
        advice = "choose another folder, or mix them knowingly with --allow-mixed"
        if earlier["mode"] != described["mode"]:
            raise StoreError(f"{self.folder} holds {earlier['mode']} results; {advice}")
        if earlier["grid"] != described["grid"]:
            names = [name for name, value in described["grid"].items() if earlier["grid"].get(name) != value]
            raise StoreError(f"{self.folder} holds results of another grid ({', '.join(names)} differ); {advice}")
        commits = {run["commit"] for run in earlier["runs"]}
        if commits != {self.commit}:
            raise StoreError(
                f"{self.folder} holds results of commit {', '.join(sorted(commits))}, "
                f"and this is {self.commit}; {advice}"
            )
        if self.commit.endswith("+"):
            raise StoreError(
                f"{self.folder} holds results of {self.commit}, a working tree with changes, "
                f"and nobody can tell whether they are still the same; {advice}"
            )
        if self.commit == "unknown" and earlier["runs"][-1]["packages"] != _packages():
            raise StoreError(f"{self.folder} holds results of other package versions; {advice}")

    def missing(self) -> list[Cell]:
        """Cells that are not finished, in the grid's order."""
        return [cell for cell in self.cells if not self._file(cell).is_file()]

    def add(self, cell: Cell, rows: Sequence[Row]) -> None:
        """Keep a finished cell. Whatever happens afterwards, it is there, and complete."""
        if not self._begun:
            (self.folder / CELLS).mkdir(parents=True, exist_ok=True)
            _write(self.folder / MANIFEST, (json.dumps(self._manifest, indent=1) + "\n").encode())
            (self.folder / RESULTS).unlink(missing_ok=True)  # of a smaller grid
            self._begun = True
        table = pa.Table.from_pylist([asdict(row) for row in rows], schema=_schema())
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        _write(self._file(cell), sink.getvalue().to_pybytes())

    def merge(self) -> bool:
        """Write all cells of the grid into one table, once none is missing; returns whether all words were the same."""
        tables = [pq.read_table(self._file(cell), schema=_schema()) for cell in self.cells]
        sink = pa.BufferOutputStream()
        table = pa.concat_tables(tables)
        pq.write_table(table, sink)
        _write(self.folder / RESULTS, sink.getvalue().to_pybytes())
        return all(table["same_words"].to_pylist())

    def _file(self, cell: Cell) -> Path:
        return self.folder / CELLS / f"{cell.key}.parquet"


def _write(path: Path, content: bytes) -> None:
    """All or nothing, even if the machine dies half-way."""
    partial = path.with_suffix(path.suffix + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if folder.is_dir() and any(folder.iterdir()):
            raise StoreError(f"{folder} holds files, but no {MANIFEST}; choose another folder") from None
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        raise StoreError(f"{path} is no manifest of an {FORMAT} of version {VERSION}")
    return manifest


def _digests(grid: Grid) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in grid.files}


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _plain(value: Any) -> Any:
    """As it comes back from JSON."""
    return json.loads(json.dumps(value))


def _schema() -> pa.Schema:
    hints = typing.get_type_hints(Row)
    return pa.schema([_field(each.name, hints[each.name]) for each in fields(Row)])


def _field(name: str, hint: Any) -> pa.Field:
    optional = isinstance(hint, types.UnionType)
    plain = next(one for one in typing.get_args(hint) if one is not types.NoneType) if optional else hint
    return pa.field(name, _ARROW[plain], nullable=optional)
