"""The laboratory on the real programs, a few tokens only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
KEYS = [
    *("rtt_ms", "profile", "policy", "candidate", "ms_per_token_p50", "ms_per_token_by_task", "ttft_ms_p50"),
    *("total_over_streaming_p50", "total_over_streaming_p95", "total_over_streaming_max"),
    *(
        "target_forwards_per_token",
        "target_positions_per_token",
        "acceptance",
        "saved_per_token",
        "uplink_bytes_per_token",
        "downlink_bytes_per_token",
        "same_words",
    ),
]


def netlab(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "netlab.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT, check=False)


def test_a_race_says_the_same_words_at_every_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "race.json"
    done = netlab(
        *("race", "--rtt-ms", "0,20", "--policies", "sync,adaptive,co-located", "--prompts", "2", "--max-tokens", "12"),
        *("--step-ms", "8", "--json", str(file)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(file.read_text())
    assert list(report) == ["commit", "date", "hardware", "settings", "rows"]
    assert [(row["rtt_ms"], row["policy"]) for row in report["rows"]] == [
        (rtt_ms, policy) for rtt_ms in (0, 20) for policy in ("streaming", "sync", "adaptive", "co-located")
    ]
    assert all(list(row) == KEYS for row in report["rows"])
    assert all(row["same_words"] for row in report["rows"])
    assert report["rows"][1]["candidate"].startswith("sync:")
    assert report["rows"][0]["acceptance"] is None
    assert report["rows"][0]["target_positions_per_token"] == 1
    assert report["rows"][2]["target_forwards_per_token"] < 1 <= report["rows"][2]["target_positions_per_token"]
    assert report["rows"][3]["acceptance"] is None
    assert report["rows"][3]["downlink_bytes_per_token"] > 0  # over a link of its own


def test_random_guesses_change_no_word(tmp_path: Path) -> None:
    file = tmp_path / "race.json"
    done = netlab(
        *("race", "--profile", "wifi", "--policies", "adaptive,server-led", "--prompts", "1", "--max-tokens", "8"),
        *("--step-ms", "8", "--drafter", "garbage", "--draft-ms", "1", "--json", str(file)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(file.read_text())["rows"]
    assert {row["profile"] for row in rows} == {"wifi"}
    assert all(row["same_words"] and row["target_forwards_per_token"] == 1 for row in rows)


def test_a_sweep_of_the_real_programs(tmp_path: Path) -> None:
    grid = tmp_path / "grid.toml"
    grid.write_text(
        'policies = ["streaming", "adaptive"]\nrtt_ms = [10]\ndevices = [1, 2]\nstep_ms = [8]\n'
        "answers = 2\ntokens = 8\n"
    )
    done = netlab("sweep", str(grid), "--real", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert len(rows) == 2 * 2 * 2
    assert all(row["same_words"] and row["mode"] == "real" for row in rows)
