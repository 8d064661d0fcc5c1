"""Resident memory and start-up time of both sides, as a user meets them."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import report
from netlab.console import print_whole
from netlab.experiments.rig import DEMO
from netlab.verifier_process import VerifierProcess

CLIENT = """
import sys
from outrider import EdgeClient, SamplingParams
import psutil
with EdgeClient(sys.argv[1], sys.argv[2]) as client:
    client.generate([{"role": "user", "content": "Hello"}], SamplingParams(max_tokens=64, ignore_eos=True), seed=1)
    assert not client.notices
    print(psutil.Process().memory_info().rss)
"""


def resident_mib(pid: int) -> float:
    """Resident memory of a process, in MiB."""
    return float(psutil.Process(pid).memory_info().rss) / 2**20


def client_mib(verifier: str, drafter: str) -> float:
    """Resident memory of a fresh client after an answer, in MiB."""
    command = [sys.executable, "-c", CLIENT, verifier, drafter]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(out) / 2**20


def seconds(command: list[str], times: int) -> float:
    """Median wall time of a command."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def verifier_ready_s(times: int) -> float:
    """Median time from starting a verifier with the demo target to its serving."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        with VerifierProcess(DEMO / "target", options=["--threads", "1"]):
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


@click.command()
@report.json_option()
def main(json_file: Path | None) -> None:
    """Measure and print a table."""
    results: dict[str, Any] = {
        "edge_client_help_s": round(seconds([sys.executable, "-m", "edge_client", "--help"], 7), 3),
        "cloud_verifier_help_s": round(seconds([sys.executable, "-m", "cloud_verifier", "--help"], 7), 3),
        "verifier_ready_s": round(verifier_ready_s(5), 2),
    }
    with VerifierProcess(DEMO / "target", options=["--threads", "1"]) as verifier:
        results["edge_client_onnx_mib"] = round(client_mib(verifier.address, str(DEMO / "drafter-onnx")))
        results["edge_client_gguf_mib"] = round(client_mib(verifier.address, str(DEMO / "drafter.gguf")))
        results["edge_client_no_drafter_mib"] = round(client_mib(verifier.address, "none"))
        results["verifier_mib"] = round(resident_mib(verifier.pid))
        results["target_file_mib"] = round((DEMO / "target" / "model.safetensors").stat().st_size / 2**20, 1)
    table = Table("what", "figure")
    for name, value in results.items():
        table.add_row(name, str(value))
    print_whole(Console(), table)
    report.write(json_file, results)


if __name__ == "__main__":
    main()
