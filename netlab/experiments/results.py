"""Results from wherever they were left: a sweep's folder, its table, or the JSON of a race or a simulation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from netlab.experiments.store import CELLS, MANIFEST, RESULTS

Row = dict[str, Any]
MEDIANS = ("ms_per_token", "ttft_ms", "total_over_streaming")  # JSON has their medians only


class ResultsError(ValueError):
    """Results that cannot be shown. The message is a sentence that says what was expected."""


@dataclass(frozen=True)
class Results:
    """Rows with the columns of `rows.Row`, some of them missing in JSON. origin: where they come from, for people.

    complete: whether every cell of the grid is there.
    """

    title: str
    rows: list[Row]
    origin: list[tuple[str, str]]
    complete: bool = True

    @property
    def policies(self) -> list[str]:
        """In the order of the rows."""
        return list(dict.fromkeys(row["policy"] for row in self.rows))

    def values(self, column: str) -> list[Any]:
        """What a column holds, each value once, in order; empty if there is no such column."""
        found = {row[column] for row in self.rows if row.get(column) is not None}
        return sorted(found)

    def where(self, wanted: Callable[[Row], bool]) -> Results:
        """Some of the rows."""
        return Results(self.title, [row for row in self.rows if wanted(row)], self.origin, self.complete)


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over answers and seeds."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one value."""
        ordered = np.array(list(values), float)
        low, median, high = (float(q) for q in np.percentile(ordered, (25, 50, 75)))
        return cls(median, low, high, len(ordered))


def read(path: Path) -> Results:
    """A folder of `netlab sweep` (a half-finished one shows what it has), a .parquet or a .json file.

    Raises ResultsError.
    """
    if path.is_dir():
        return _folder(path)
    try:
        if path.suffix == ".parquet":
            return _named(path.stem, pq.read_table(path).to_pylist(), [], complete=True)
        if path.suffix == ".json":
            return _json(path)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise ResultsError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    raise ResultsError(
        f"{path} is neither a folder of netlab sweep, nor a .parquet file, nor the .json of netlab race or simulate"
    )


def _folder(path: Path) -> Results:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        runs = manifest["runs"]
        table = path / RESULTS
        cells = [path / CELLS / f"{key}.parquet" for key in manifest["cells"]]
        files = [table] if table.is_file() else [cell for cell in cells if cell.is_file()]
        rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise ResultsError(f"{path} holds no results of netlab sweep: {error}") from error

    def each(key: str) -> str:
        return ", ".join(dict.fromkeys(str(run[key]) for run in runs))

    origin = [
        ("Mode", manifest["mode"]),
        ("Commit", ", ".join(sorted({row["commit"] for row in rows}))),
        ("Date", each("date")),
        ("Hardware", each("hardware")),
        ("Seeds", ", ".join(map(str, manifest["grid"]["seeds"]))),
        ("Packages", ", ".join(f"{name} {version}" for name, version in runs[-1]["packages"].items())),
        ("Grid", json.dumps({k: v for k, v in manifest["grid"].items() if v not in ([], "") and k != "title"})),
    ]
    return _named(manifest["grid"]["title"] or path.name, rows, origin, complete=table.is_file())


def _json(path: Path) -> Results:
    value = json.loads(path.read_text(encoding="utf-8"))
    settings = value["settings"]
    defaults = {"draft_ms": settings["draft_ms"], "step_ms": settings["step_ms"], "devices": settings.get("devices", 1)}
    rows = [
        {key: one for key, one in defaults.items() if isinstance(one, int | float)}
        | {"pair": settings.get("drafter", ""), "profile": None}
        | row
        | {name: row[f"{name}_p50"] for name in MEDIANS if f"{name}_p50" in row}
        for row in value["rows"]
    ]
    origin = [("Commit", value["commit"]), ("Date", value["date"]), ("Hardware", value["hardware"])]
    return _named(path.stem, rows, [*origin, ("Settings", json.dumps(settings))], complete=True)


def _named(title: str, rows: list[Row], origin: list[tuple[str, str]], *, complete: bool) -> Results:
    if not rows:
        raise ResultsError(f"{title} holds no finished cell yet")
    return Results(title, rows, origin, complete)
