"""Traces of round-trip times and of rates, and their replay."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netlab import traces
from netlab.traces import RateTrace, Replay, RttTrace


def test_round_trips_are_read_and_counted_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("time_ms,rtt_ms\n5,28\n64.5,22\n120,16\n")
    trace = traces.read_rtts(path)
    assert trace == traces.RttTrace((0, 59.5, 115), (28, 22, 16))
    assert trace.median_ms == 22


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "line 1: expected the header time_ms,rtt_ms, found ''"),
        ("a,b\n1,2\n", "line 1: expected the header time_ms,rtt_ms, found 'a,b'"),
        ("time_ms,rtt_ms\n", "line 2: expected at least one measurement"),
        ("time_ms,rtt_ms\n1,x\n", "line 2: expected two numbers, found '1,x'"),
        ("time_ms,rtt_ms\n1,2\n2,3,4\n", "line 3: expected two numbers, found '2,3,4'"),
        ("time_ms,rtt_ms\n1,2\n1,3\n", "line 3: expected a time after 1, found 1"),
        ("time_ms,rtt_ms\n1,-2\n", "line 2: expected a finite time and a round trip of 0 to 120,000 ms, found '1,-2'"),
        ("time_ms,rtt_ms\n1,nan\n", "line 2: expected a finite time"),
    ],
)
def test_malformed_round_trips_name_file_line_and_what_was_expected(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(traces.TraceError, match="bad.csv, " + sentence):
        traces.read_rtts(path)


def test_rates_are_read_with_empty_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "rates.csv"
    path.write_text("time_ms,up_kbps,down_kbps\n100,0,5000\n\n300,800,0\n", encoding="utf-8-sig")
    trace = traces.read_rates(path)
    assert trace == RateTrace((0, 200), (0, 800), (5000, 0))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("time_ms,rtt_ms\n", "line 1: expected the header time_ms,up_kbps,down_kbps, found 'time_ms,rtt_ms'"),
        ("time_ms,up_kbps,down_kbps\n1,2\n", "line 2: expected three numbers, found '1,2'"),
        ("time_ms,up_kbps,down_kbps\n1,2,-3\n", "line 2: expected a finite time and rates of 0 to 1,000,000,000 kbps"),
    ],
)
def test_malformed_rates_name_file_line_and_what_was_expected(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(traces.TraceError, match="bad.csv, " + sentence):
        traces.read_rates(path)


def test_a_trace_that_lets_nothing_pass_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dead.csv"
    path.write_text("time_ms,up_kbps,down_kbps\n0,0,1\n5,0,1\n")
    with pytest.raises(traces.TraceError, match=r"dead.csv: a trace with up_kbps of 0 all along lets nothing pass"):
        traces.read_rates(path)


def test_a_file_that_is_not_there_and_one_that_is_no_text_say_so(tmp_path: Path) -> None:
    with pytest.raises(traces.TraceError, match=r"none.csv cannot be read"):
        traces.read_rtts(tmp_path / "none.csv")
    (tmp_path / "raw.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(traces.TraceError, match=r"raw.csv cannot be read"):
        traces.read_rtts(tmp_path / "raw.csv")


@pytest.mark.parametrize(
    ("times", "rtts", "sentence"),
    [
        ((), (), "begin at 0 and rise"),
        ((1, 2), (1, 2), "begin at 0 and rise"),
        ((0, 2, 2), (1, 2, 3), "begin at 0 and rise"),
        ((0, float("inf")), (1, 2), "are finite"),
        ((0, 2), (1,), "as many rtts_ms as times_ms, not 1 for 2"),
        ((0, 2), (1, 200_000), "rtts_ms are from 0 to 120,000"),
    ],
)
def test_what_is_no_trace_is_refused(times: tuple[float, ...], rtts: tuple[float, ...], sentence: str) -> None:
    with pytest.raises(traces.TraceError, match=sentence):
        RttTrace(times, rtts)


@given(
    st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=8),
    st.floats(-1e6, 1e9),
)
def test_a_replay_always_moves_on_and_repeats(gaps: list[float], now_ms: float) -> None:
    times = [0.0]
    for gap in gaps:
        times.append(times[-1] + gap)
    values = [float(i) for i in range(len(times))]
    replay = Replay(times, values)
    period_ms = times[-1] + gaps[-1]
    value, until_ms = replay.at(now_ms)
    assert until_ms > now_ms
    assert until_ms - now_ms <= max(gaps) + 1e-6
    middle_ms = (now_ms + until_ms) / 2
    if until_ms - now_ms > 1e-3:
        assert replay.at(middle_ms)[0] == value == replay.at(middle_ms + period_ms)[0]
        assert replay.at(until_ms + 5e-4)[0] == (value + 1) % len(values)
