"""Traces of round-trip times: CSV files with the columns `time_ms,rtt_ms`."""

from __future__ import annotations

import csv
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

COLUMNS = ["time_ms", "rtt_ms"]


class TraceError(ValueError):
    """A trace that cannot be used. The message names file, line and what was expected."""


@dataclass(frozen=True)
class RttTrace:
    """Round-trip times as measured. times_ms: rising, the first is 0."""

    times_ms: tuple[float, ...]
    rtts_ms: tuple[float, ...]

    @property
    def duration_ms(self) -> float:
        """From the first to the last measurement."""
        return self.times_ms[-1]

    @property
    def median_ms(self) -> float:
        """Of all measurements."""
        return statistics.median(self.rtts_ms)


def read(path: Path) -> RttTrace:
    """Read a trace; times are counted from its first line. Raises TraceError."""
    times: list[float] = []
    rtts: list[float] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            if (header := next(rows, [])) != COLUMNS:
                raise TraceError(f"{path}, line 1: expected the header {','.join(COLUMNS)}, found {','.join(header)!r}")
            for row in rows:
                time_ms, rtt_ms = _numbers(row, f"{path}, line {rows.line_num}")
                if times and time_ms <= times[-1]:
                    raise TraceError(
                        f"{path}, line {rows.line_num}: expected a time after {times[-1]:g}, found {row[0]}"
                    )
                times.append(time_ms)
                rtts.append(rtt_ms)
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path} cannot be read: {error}") from error
    if not times:
        raise TraceError(f"{path}, line 2: expected at least one measurement, found the end of the file")
    return RttTrace(tuple(time - times[0] for time in times), tuple(rtts))


def _numbers(row: list[str], where: str) -> tuple[float, float]:
    try:
        time_ms, rtt_ms = map(float, row)
    except ValueError:
        raise TraceError(f"{where}: expected two numbers, found {','.join(row)!r}") from None
    if not (math.isfinite(time_ms) and 0 <= rtt_ms < math.inf):
        raise TraceError(f"{where}: expected a finite time and a round trip of at least 0, found {','.join(row)!r}")
    return time_ms, rtt_ms
