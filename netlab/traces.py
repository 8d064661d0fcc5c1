"""Traces of a network: what somebody measured, to be replayed. CSV files with a header, in one of two forms.

Round-trip times, `time_ms,rtt_ms`, and rates, `time_ms,up_kbps,down_kbps`: thousands of bits per second towards the
verifier and back, 0 where nothing passed. Times rise and count from the first line, whatever it says. A value holds
until the next one. A trace repeats: its last value holds as long as the one before it did.
"""

from __future__ import annotations

import bisect
import csv
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RTT_COLUMNS = ("time_ms", "rtt_ms")
RATE_COLUMNS = ("time_ms", "up_kbps", "down_kbps")
MOST_RTT_MS = 120_000.0
MOST_KBPS = 1e9


class TraceError(ValueError):
    """A trace that cannot be used. The message names file, line and what was expected."""


@dataclass(frozen=True)
class RttTrace:
    """Round-trip times as measured. times_ms: rising, the first is 0. Raises TraceError for any other."""

    times_ms: tuple[float, ...]
    rtts_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        """Take lists too, and refuse what is no trace."""
        _check(self, ("times_ms", "rtts_ms"), 0, MOST_RTT_MS)

    @property
    def median_ms(self) -> float:
        """Of all measurements."""
        return statistics.median(self.rtts_ms)


@dataclass(frozen=True)
class RateTrace:
    """Rates as measured. times_ms: rising, the first is 0. Raises TraceError for others and if nothing ever passes."""

    times_ms: tuple[float, ...]
    up_kbps: tuple[float, ...]
    down_kbps: tuple[float, ...]

    def __post_init__(self) -> None:
        """Take lists too, and refuse what is no trace."""
        _check(self, ("times_ms", "up_kbps", "down_kbps"), 0, MOST_KBPS)
        for name in ("up_kbps", "down_kbps"):
            if not any(getattr(self, name)):
                raise TraceError(f"a trace with {name} of 0 all along lets nothing pass, ever")


class Replay:
    """A trace's values at any time: each holds until the next, and all repeat."""

    def __init__(self, times_ms: Sequence[float], values: Sequence[float]) -> None:
        """times_ms: rising, the first is 0."""
        self._times, self._values = times_ms, values
        self._period = _period_ms(times_ms)
        self.least = min(values)

    def at(self, now_ms: float) -> tuple[float, float]:
        """The value at this time, and until when it holds, which is later."""
        turn, inside = divmod(now_ms, self._period)
        index = bisect.bisect_right(self._times, inside)
        while True:
            value = self._values[index - 1]
            if index == len(self._times):
                turn, index = turn + 1, 0
            until_ms = turn * self._period + self._times[index]
            if until_ms > now_ms:  # it may not be, by a rounding
                return value, until_ms
            index += 1


def read_rtts(path: Path) -> RttTrace:
    """Read round-trip times, `time_ms,rtt_ms`. Raises TraceError."""
    return RttTrace(*_read(path, RTT_COLUMNS, MOST_RTT_MS, "a round trip of 0 to 120,000 ms"))


def read_rates(path: Path) -> RateTrace:
    """Read rates, `time_ms,up_kbps,down_kbps`. Raises TraceError."""
    columns = _read(path, RATE_COLUMNS, MOST_KBPS, "rates of 0 to 1,000,000,000 kbps")
    try:
        return RateTrace(*columns)
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None


def _read(path: Path, columns: tuple[str, ...], most: float, expected: str) -> list[tuple[float, ...]]:
    """The file's columns, times counted from its first line."""
    lines: list[list[float]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            if tuple(header := next(rows, [])) != columns:
                raise TraceError(f"{path}, line 1: expected the header {','.join(columns)}, found {','.join(header)!r}")
            for row in filter(None, rows):  # empty lines say nothing
                where, found = f"{path}, line {rows.line_num}", ",".join(row)
                try:
                    time_ms, *values = numbers = [float(cell) for cell in row]
                except ValueError:
                    numbers = values = []
                if len(numbers) != len(columns):
                    count = ("two", "three")[len(columns) - 2]
                    raise TraceError(f"{where}: expected {count} numbers, found {found!r}")
                if not (math.isfinite(time_ms) and all(0 <= value <= most for value in values)):
                    raise TraceError(f"{where}: expected a finite time and {expected}, found {found!r}")
                if lines and time_ms <= lines[-1][0]:
                    raise TraceError(f"{where}: expected a time after {lines[-1][0]:g}, found {row[0]}")
                lines.append(numbers)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path} cannot be read: {error}") from error
    if not lines:
        raise TraceError(f"{path}, line 2: expected at least one measurement, found the end of the file")
    begin = lines[0][0]
    return list(zip(*((time_ms - begin, *values) for time_ms, *values in lines), strict=True))


def _check(trace: RttTrace | RateTrace, names: tuple[str, ...], least: float, most: float) -> None:
    for name in names:
        object.__setattr__(trace, name, tuple(getattr(trace, name)))
    times, *columns = (getattr(trace, name) for name in names)
    if not times or times[0] != 0 or any(a >= b for a, b in itertools.pairwise(times)):
        raise TraceError("a trace's times_ms begin at 0 and rise")
    if not times[-1] < math.inf:
        raise TraceError("a trace's times_ms are finite")
    for name, values in zip(names[1:], columns, strict=True):
        if len(values) != len(times):
            raise TraceError(f"a trace has as many {name} as times_ms, not {len(values)} for {len(times)}")
        if not all(least <= value <= most for value in values):
            raise TraceError(f"a trace's {name} are from {least:g} to {most:,.12g}")


def _period_ms(times_ms: Sequence[float]) -> float:
    return times_ms[-1] + (times_ms[-1] - times_ms[-2] if len(times_ms) > 1 else 1.0)
