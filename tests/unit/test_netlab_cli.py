"""The `netlab` command, as people type it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from netlab.cli import main

ROOT = Path(__file__).resolve().parents[2]


def test_help_names_environment_variables_and_defaults() -> None:
    text = CliRunner().invoke(main, ["link", "-h"], terminal_width=200).output
    assert "[env var: OUTRIDER_NETLAB_LINK_RTT_MS; default: 50.0" in text
    assert "OUTRIDER_NETLAB_LINK_TO;" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--to", "nowhere"], "'nowhere' is not of the form HOST:PORT"),
        (["--to", "h:70000"], "'h:70000' is not of the form HOST:PORT"),
        (["--to", "h:1", "--rtt-ms", "-1"], "-1.0 is not in the range"),
        (["--to", "h:1", "--loss", "2"], "loss is 2.0, but a link takes 0 to 0.99"),
        ([], "Missing option '--to'"),
    ],
)
def test_wrong_arguments_are_refused_with_a_sentence(arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(main, ["link", *arguments])
    assert result.exit_code == 2
    assert sentence in result.output


def test_link_runs_until_interrupted_and_prints_its_counters() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        command = [sys.executable, "-m", "netlab.cli", "link", "--to", f"127.0.0.1:{port}", "--rtt-ms", "2"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            with socket.create_connection(("127.0.0.1", int(words[0].rpartition(":")[2]))) as device:
                device.sendall(b"hello")
                target = server.accept()[0]
                assert target.recv(5) == b"hello"
                target.close()
                process.send_signal(signal.SIGINT)
                assert "bytes up 5, bytes down 0, connections 1" in process.stdout.read()
        assert process.returncode == 0
