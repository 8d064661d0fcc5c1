"""The `netlab` command, as people type it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from netlab import netem, profiles
from netlab.cli import main
from netlab.link_settings import LinkSettings
from netlab.traces import RateTrace, RttTrace

ROOT = Path(__file__).resolve().parents[2]


def test_help_names_environment_variables_and_defaults() -> None:
    text = CliRunner().invoke(main, ["link", "-h"], terminal_width=200).output
    assert "[env var: OUTRIDER_NETLAB_LINK_RTT_MS; default: 50.0" in text
    assert "OUTRIDER_NETLAB_LINK_TO]" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--to", "nowhere"], "'nowhere' is not of the form HOST:PORT"),
        (["--to", "h:70000"], "'h:70000' is not of the form HOST:PORT"),
        (["--to", "::1:50051"], "'::1:50051': an IPv6 address needs brackets"),
        (["--to", "h:1", "--rtt-ms", "-1"], "-1.0 is not in the range"),
        (["--to", "h:1", "--loss", "2"], "loss is 2.0, but a link takes 0 to 0.99"),
        ([], "Missing option '--to'"),
        (["--to", "h:1", "--profile", "5gg"], "there is no network profile '5gg'; there are lan, "),
        (["--to", "h:1", "--jitter-model", "odd"], "'odd' is not one of 'uniform', 'normal'"),
        (["--to", "h:1", "--good-ms", "50"], "good_ms is 50 and bad_ms 0, but outages take at least 1 of both"),
        (["--to", "h:1", "--bad-loss", "3"], "bad_loss is 3.0, but a link takes 0 to 1"),
        (["--to", "h:1", "--rtt-trace", "none.csv"], "does not exist"),
        (["--to", "h:1", "--rtt-trace", __file__], "line 1: expected the header time_ms,rtt_ms"),
        (["--to", "h:1", "--rtt-trace", __file__, "--rtt-ms", "3"], "--rtt-trace says the round trips itself"),
        (["--to", "h:1", "--rate-trace", __file__, "--up-kbps", "3"], "--rate-trace takes the place of --up-kbps"),
        (["--apply"], "name an interface with --netem"),
    ],
)
def test_wrong_arguments_are_refused_with_a_sentence(arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(main, ["link", *arguments], terminal_width=400)
    assert result.exit_code == 2
    assert sentence in result.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], LinkSettings.of_rtt(50)),
        (["--rtt-ms", "8", "--seed", "4"], LinkSettings.of_rtt(8, seed=4)),
        (["--profile", "lte"], profiles.find("lte").settings),
        (
            ["--profile", "lte", "--rtt-ms", "8", "--bad-ms", "9"],
            replace(profiles.find("lte").settings, delay_up_ms=4, delay_down_ms=4, bad_ms=9),
        ),
        (["--delay-up-ms", "3"], LinkSettings(delay_up_ms=3)),
        (["--rtt-ms", "8", "--delay-up-ms", "3"], LinkSettings(delay_up_ms=3, delay_down_ms=4)),
        (
            ["--rate-trace", "rates.csv", "--queue-ms", "30", "--offset-ms", "7"],
            replace(LinkSettings.of_rtt(50), rate_trace=RateTrace((0, 10), (8, 0), (0, 9)), queue_ms=30, offset_ms=7),
        ),
        (
            ["--profile", "wan", "--rtt-trace", "rtt.csv"],
            replace(profiles.find("wan").settings, rtt_trace=RttTrace((0, 10), (5, 6))),
        ),
    ],
)
def test_options_override_the_profile(
    arguments: list[str], expected: LinkSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rates.csv").write_text("time_ms,up_kbps,down_kbps\n0,8,0\n10,0,9\n")
    Path("rtt.csv").write_text("time_ms,rtt_ms\n0,5\n10,6\n")
    planned: list[LinkSettings] = []

    def plan(settings: LinkSettings, _: str) -> netem.Plan:
        planned.append(settings)
        return netem.Plan((), (), ())

    monkeypatch.setattr(netem, "plan", plan)
    result = CliRunner().invoke(main, ["link", "--netem", "eth0", *arguments])
    assert result.exit_code == 0, result.output
    assert planned == [expected]


def test_netem_prints_commands_that_a_shell_can_run() -> None:
    output = CliRunner().invoke(main, ["link", "--netem", "eth0", "--profile", "subway"]).output
    assert all(line.startswith(("tc ", "ip ", "# ")) for line in output.splitlines())
    assert "# undo: tc qdisc del dev eth0 root" in output


def test_netem_says_why_it_cannot_be_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    result = CliRunner().invoke(main, ["link", "--netem", "eth0", "--apply"])
    assert result.exit_code == 1
    assert "Error: there is no ip here; it comes with iproute2, on Linux only." in result.output


def test_profiles_are_listed_and_shown() -> None:
    table = CliRunner().invoke(main, ["profiles"]).output
    assert all(name in table for name in profiles.names())
    one = CliRunner().invoke(main, ["profiles", "satellite"]).output
    assert "RFC 2488" in one
    assert "delay_up_ms" in one
    listed = json.loads(CliRunner().invoke(main, ["profiles", "--json"]).output)
    assert [profile["name"] for profile in listed] == [name for name in profiles.names() if name != "satellite"]
    shown = json.loads(CliRunner().invoke(main, ["profiles", "lan", "--json"]).output)
    assert LinkSettings.of_dict(shown["settings"]) == profiles.find("lan").settings
    wrong = CliRunner().invoke(main, ["profiles", "mars"])
    assert wrong.exit_code == 2
    assert "there is no network profile 'mars'" in wrong.output


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
