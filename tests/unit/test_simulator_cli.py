"""`netlab simulate` and `netlab record`, as people type them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from netlab.cli import main
from netlab.simulator import recording

SMALL = ["--answers", "3", "--tokens", "40"]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["simulate", *arguments], terminal_width=120)
    assert result.exit_code == 0, result.output
    return result.output


def test_figures_as_a_table_and_as_json(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    output = run("--rtt-ms", "0,50", *SMALL, "--json", str(file))
    assert "streaming" in output
    report = json.loads(file.read_text())
    assert {"commit", "date", "hardware", "settings", "rows"} <= set(report)
    assert [row["rtt_ms"] for row in report["rows"] if row["policy"] == "streaming"] == [0, 50]
    assert {row["policy"] for row in report["rows"]} >= {"streaming", "sync", "pipelined", "server-led"}
    keys = {
        "rtt_ms", "policy", "ms_per_token_p50", "total_over_streaming_p50", "total_over_streaming_p95",
        "target_forwards_per_token", "acceptance", "uplink_bytes_per_token", "same_words",
    }  # fmt: skip
    for row in report["rows"]:
        assert keys <= set(row)
        assert row["same_words"] is True
        assert row["total_over_oracle_p50"] >= 0.9999
    for row in report["rows"]:
        if row["policy"] == "streaming":
            assert (row["ms_per_token_p50"], row["total_over_streaming_p95"], row["acceptance"]) == (30, 1, None)


def test_a_recorded_pair_and_a_trace_of_round_trips(tmp_path: Path) -> None:
    answers = [recording.RecordedAnswer(9, n, [True, True, n % 2 == 0] * 20, [0.9] * 60) for n in range(3)]
    recording.write(recording.Recording(answers), tmp_path / "pair.jsonl")
    trace = tmp_path / "rtt.csv"
    trace.write_text("time_ms,rtt_ms\n0,20\n100,80\n200,10\n")
    arguments = ["--trace", str(tmp_path / "pair.jsonl"), "--rtt-trace", str(trace), "--policies", "server-led,oracle"]
    assert "oracle" in run(*arguments, "--answers", "3", "--jitter-ms", "0")


def test_a_profile_and_a_trace_of_rates(tmp_path: Path) -> None:
    file, rates = tmp_path / "figures.json", tmp_path / "rates.csv"
    rates.write_text("time_ms,up_kbps,down_kbps\n0,200,200\n300,0,50\n400,3000,3000\n")
    arguments = ["--profile", "subway", "--rate-trace", str(rates), "--policies", "server-led,oracle", *SMALL]
    run(*arguments, "--json", str(file))
    rows = json.loads(file.read_text())["rows"]
    assert {row["rtt_ms"] for row in rows} == {58}
    assert all(row["total_over_oracle_p50"] >= 0.9999 for row in rows)
    run(*arguments, "--rtt-ms", "10,20", "--json", str(file))
    assert {row["rtt_ms"] for row in json.loads(file.read_text())["rows"]} == {10, 20}


def test_devices_that_share_a_verifier_leave_it_less_to_do_for_each(tmp_path: Path) -> None:
    busy = []
    for devices in ("1", "3"):
        file = tmp_path / f"{devices}.json"
        run("--rtt-ms", "20", "--policies", "server-led", *SMALL, "--devices", devices, "--json", str(file))
        busy.append(json.loads(file.read_text())["rows"][0]["verifier_ms_per_token"])
    assert busy[1] < 0.6 * busy[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--policies", "server-led,nothing"], "there is no policy 'nothing'; there are adaptive, server-led, "),
        (["--rtt-ms", "0,-5"], "a round trip of -5 ms cannot be simulated; it takes 0 to 120000."),
        (["--rtt-ms", "nan"], "a round trip of nan ms cannot be simulated"),
        (["--rtt-ms", "5,5"], "a round trip stands in the grid twice: 5, 5."),
        (["--rtt-ms", "five"], "'five' is no list of numbers"),
        (["--alpha", "1.5"], "alpha is 1.5; a share of right guesses lies between 0 and 1."),
        (["--draft-ms", "0"], "a draft time of 0 ms cannot be simulated"),
        (["--step-ms", "0"], "a step time of 0 ms cannot be simulated"),
        (["--answers", "0"], "a grid needs at least 1 answers, not 0."),
        (["--devices", "0"], "a grid needs at least 1 devices, not 0."),
        (["--tokens", "1"], "a grid needs at least 2 tokens, not 1."),
        (["--up-kbps", "-1"], "up_kbps is -1.0, but a link takes 0 to"),
        (["--profile", "5gg"], "there is no network profile '5gg'; there are lan, "),
        (["--rtt-ms", "5", "--delay-up-ms", "1"], "--rtt-ms is halved each way; leave it or --delay-up-ms and"),
        (["--per-position-ms", "-1"], "per_position_ms is -1; it takes 0 to"),
        (["--informativeness", "1"], "informativeness is 1; it must be at least 0 and below 1."),
    ],
)
def test_impossible_grids_are_refused_with_a_sentence(arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(main, ["simulate", *arguments], terminal_width=200)
    assert result.exit_code == 2
    assert sentence in result.output


def test_contradictions_and_bad_files_are_refused(tmp_path: Path) -> None:
    pair, trace = tmp_path / "pair.jsonl", tmp_path / "rtt.csv"
    recording.write(recording.Recording([recording.RecordedAnswer(9, 1, [True] * 9, [0.9] * 9)]), pair)
    trace.write_text("time_ms,rtt_ms\nx,20\n")
    for arguments, sentence in (
        (["--trace", str(pair), "--alpha", "0.5"], "a recorded pair has its own hits; leave --alpha out"),
        (["--rtt-trace", str(trace)], "rtt.csv, line 2: expected two numbers, found 'x,20'."),
        (["--trace", str(trace)], "rtt.csv, line 1: expected a JSON object"),
        (["--trace", str(tmp_path / "none")], "does not exist"),
    ):
        result = CliRunner().invoke(main, ["simulate", *arguments], terminal_width=200)
        assert result.exit_code == 2
        assert sentence in result.output.replace("\n", "")
    trace.write_text("time_ms,rtt_ms\n0,20\n")
    result = CliRunner().invoke(main, ["simulate", "--rtt-trace", str(trace), "--rtt-ms", "5"])
    assert "--rtt-trace says the round trips itself" in result.output


def test_record_without_a_drafter_is_refused(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Hello\n")
    arguments = ["--target", "t", "--drafter", "none", "--prompts", str(prompts), "--out", str(tmp_path / "o.jsonl")]
    result = CliRunner().invoke(main, ["record", *arguments])
    assert result.exit_code == 2
    assert "without a drafter there is nothing to record" in result.output
    arguments[3] = str(tmp_path / "nowhere.gguf")
    result = CliRunner().invoke(main, ["record", *arguments])
    assert result.exit_code == 1
    assert "does not exist" in result.output
