"""The chat in a terminal, or on a pipe, through the death of its verifier."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from netlab.verifier_process import VerifierProcess

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "models" / "demo"
OPTIONS = ["--threads", "1", "--step-ms", "100"]  # an answer takes a second or two
QUESTION = "I need a hotel in Chicago for three nights.\n"


def chat(address: str, drafter: str) -> subprocess.Popen[bytes]:
    command = ["chat", "--verifier", address, "--drafter", drafter, "--seed", "7"]
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "edge_client", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )


def ask(process: subprocess.Popen[bytes]) -> bytes:
    """Returns the beginning of the answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(QUESTION.encode())
    process.stdin.flush()
    return process.stdout.read(4)


@pytest.mark.parametrize("drafter", ["none", "demo"])
def test_a_verifier_that_is_killed_in_mid_answer_changes_no_word(drafter: str) -> None:
    with VerifierProcess(DEMO / "target", options=OPTIONS) as first:
        undisturbed = chat(first.address, drafter)
        begun = ask(undisturbed)
        whole = begun + undisturbed.communicate(timeout=60)[0]
        with chat(first.address, drafter) as process:
            said = ask(process)
            first.kill()
            with VerifierProcess(DEMO / "target", port=first.port, options=OPTIONS):
                rest, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    assert said + rest == whole
    assert b"waiting for the network" in errors
    assert len(whole) > 12, "too short to have been killed in its middle"
