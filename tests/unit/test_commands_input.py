"""What people type at the commands: refused with a sentence, or taken as they mean it."""

from __future__ import annotations

import importlib
import io
import os
import stat
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from rich.console import Console
from rich.table import Table

from cloud_verifier.cli import main as cloud_verifier
from edge_client.bench import report
from edge_client.bench.measure import Measurements
from edge_client.cli import _question
from edge_client.cli import main as edge_client
from edge_client.link.security import Security, host_and_port
from edge_client.settings.options import make_params
from netlab.cli import main as netlab
from netlab.console import print_whole
from outrider_cli.outputs import OutputFile, OutputFolder

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = [
    file for file in sorted((ROOT / "benchmarks").rglob("*.py")) if "@report.json_option(" in file.read_text()
]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://10.0.0.1:50051", r"no URL.*leave http:// out"),
        ("127.0.0.1:99999", "from 1 to 65535"),
        ("127.0.0.1:0", "from 1 to 65535"),
        ("nowhere", "HOST:PORT"),
    ],
)
def test_addresses_of_a_verifier(address: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        host_and_port(address)


def test_plaintext_to_another_machine_names_the_flags() -> None:
    with pytest.raises(ValueError, match=r"--tls.*--ssl-ca-certs.*--insecure"):
        Security().check("example.org")


def test_auto_is_shown_as_it_is_written() -> None:
    shown = CliRunner().invoke(cloud_verifier, ["config", "show", "serve"]).output
    assert next(line for line in shown.splitlines() if line.startswith("step-tokens")).split()[1] == "auto"
    shown = CliRunner().invoke(cloud_verifier, ["config", "show", "serve", "--step-tokens", "7"]).output
    assert next(line for line in shown.splitlines() if line.startswith("step-tokens")).split()[1] == "7"


def test_a_message_from_standard_input_and_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, arguments, expected in (
        ("Hi?\n", (None, "", None), [{"role": "user", "content": "Hi?"}]),
        ("", ("Hi", "Be brief", None), [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}]),
        ("Once\n", (None, "", "-"), "Once\n"),
        ("", (None, "", "Once"), "Once"),
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO(given))
        assert _question(*arguments) == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    with pytest.raises(click.UsageError, match="--message"):
        _question(None, "", None)


def test_penalties_reach_the_parameters() -> None:
    taken = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "max_tokens": 5, "stop": ()}
    params = make_params(taken | {"repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": -0.5})
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.1, 0.5, -0.5)


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_a_key_that_goes_to_a_file_is_read_by_its_owner_alone(tmp_path: Path) -> None:
    out, keys = tmp_path / "key", tmp_path / "keys.toml"
    with out.open("w") as file:
        out.chmod(0o644)
        command = [sys.executable, "-m", "cloud_verifier", "keys", "add", "me", "--api-keys", str(keys)]
        subprocess.run(command, stdout=file, stderr=subprocess.PIPE, timeout=120, check=True)
    assert out.read_text().startswith("outr_")
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_outputs_are_checked_before_anything_is_measured(tmp_path: Path) -> None:
    for command, arguments in (
        (netlab, ["simulate", "--json", "/no/dir/x.json"]),
        (netlab, ["race", "--json", "/no/dir/x.json"]),
        (netlab, ["agree", "--json", "/no/dir/x.json"]),
        (netlab, ["sweep", "networks", "--simulate", "--out", f"{__file__}/x"]),
        (edge_client, ["export", "--model", str(tmp_path), "--output", f"{__file__}/x"]),
    ):
        result = CliRunner().invoke(command, arguments)
        assert result.exit_code == 2
        assert "no folder" in result.output
    assert OutputFile().convert(str(tmp_path / "x.json"), None, None) == tmp_path / "x.json"
    assert OutputFolder().convert(str(tmp_path / "a" / "b"), None, None) == tmp_path / "a" / "b"
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("module", [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in BENCHMARKS])
def test_a_benchmark_checks_its_file_before_it_measures(module: str) -> None:
    result = CliRunner().invoke(importlib.import_module(module).main, ["--json", "/no/dir/x.json"])
    assert result.exit_code == 2
    assert "no folder" in result.output


def test_a_table_keeps_all_columns_where_there_is_little_width() -> None:
    table = Table(*(f"column {number}" for number in range(12)))
    table.add_row(*(f"value {number}" for number in range(12)))
    out = io.StringIO()
    print_whole(Console(file=out, width=40), table)
    for number in range(12):
        assert f"column {number} " in out.getvalue()
        assert f"value {number} " in out.getvalue()


def test_bench_tells_what_a_person_should_know(capsys: pytest.CaptureFixture[str]) -> None:
    figures = Measurements("tiny", "CPU", 1.0, 2.0, (), None, ("no provider cuda; the drafter runs on the CPU",))
    for as_json in (False, True):
        report.show(report.Report(figures), as_json=as_json)
        assert "runs on the CPU" in capsys.readouterr().err
