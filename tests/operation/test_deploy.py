"""What is in deploy/ speaks of flags and metrics that there are."""

from __future__ import annotations

import json
import plistlib
import re
import shlex
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from cloud_verifier.cli import main
from edge_client.cli import main as edge_main
from edge_client.client import EdgeClient
from netlab.verifier_process import VerifierProcess
from outrider_cli.config import resolve
from speculation.sampling import SamplingParams
from tests.service.raw import DEADLINE_S, until

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DEMO = ROOT / "models" / "demo"
SELECTOR = re.compile(r"(?P<name>outrider:\w+)(?:\{(?P<labels>[^}]*)\})?")
LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
GROUPING = re.compile(r"\b(?:by|ignoring|on|without)\s*\(([^)]*)\)")
PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """Labels by sample name, of a real verifier after a real session with drafts and one refusal."""
    with VerifierProcess(DEMO / "target", options=["--threads", "1", "--metrics-port", "0"]) as verifier:
        with EdgeClient(verifier.address, str(DEMO / "drafter-onnx"), pace="sync:4") as client:
            question = [{"role": "user", "content": "I need a train to Cambridge"}]
            client.generate(question, SamplingParams(temperature=0.0, max_tokens=24), seed=1)
        with EdgeClient(verifier.address, model="other") as client, pytest.raises(Exception, match="not served here"):
            client.generate("x", SamplingParams(max_tokens=1))
        until(lambda: "MODEL" in verifier.log, "the refusal is over")
        found = re.search(r"metrics at (http://\S+)", verifier.log)
        assert found is not None
        with urllib.request.urlopen(found[1], timeout=DEADLINE_S) as reply:
            text = reply.read().decode()
    families = text_string_to_metric_families(text)
    labels: dict[str, set[str]] = {}
    for sample in (sample for family in families for sample in family.samples):
        labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


def queries() -> Iterator[tuple[str, str]]:
    """Every query of the dashboard, with the legend beside it."""
    dashboard = json.loads((DEPLOY / "grafana" / "outrider-verifier.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"], target["legendFormat"]
    for variable in dashboard["templating"]["list"]:
        yield variable["query"], ""


def test_every_query_of_the_dashboard_finds_its_metrics_and_labels(exported: dict[str, set[str]]) -> None:
    asked = 0
    for query, legend in queries():
        selectors = list(SELECTOR.finditer(query))
        assert selectors, query
        there: set[str] = set()
        for selector in selectors:
            assert selector["name"] in exported, f"{selector['name']} of {query}"
            labels = exported[selector["name"]]
            assert set(LABEL.findall(selector["labels"] or "")) <= labels, query
            there |= labels
            asked += 1
        for names in GROUPING.findall(query):
            assert {name.strip() for name in names.split(",")} <= there, query
        assert set(PLACEHOLDER.findall(legend)) <= there, legend
        assert query.count("(") == query.count(")")
    assert asked > 30


def test_every_metric_is_in_the_documentation(exported: dict[str, set[str]]) -> None:
    page = (ROOT / "docs" / "operation.md").read_text()
    names = {re.sub(r"_(bucket|count|sum)$", "", name) for name in exported if name.startswith("outrider:")}
    assert {name for name in names if f"`{name}`" not in page} == set()


def settings(arguments: list[str]) -> dict[str, object]:
    """What `serve` would make of a command line. Raises click's errors."""
    with click.Context(main, info_name="cloud-verifier", auto_envvar_prefix="OUTRIDER_VERIFIER") as parent:
        return {setting.key: setting.value for setting in resolve(main.commands["serve"], "serve", arguments, parent)}


def test_the_flags_of_compose_file_and_unit_are_flags() -> None:
    compose: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    command, *flags = [
        argument.replace("/opt/outrider", str(ROOT)) for argument in compose["services"]["verifier"]["command"]
    ]
    assert command == "serve"
    resolved = settings(flags)
    assert (resolved["port"], resolved["metrics-port"], resolved["metrics-host"]) == (50051, 9090, "0.0.0.0")
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert prometheus["scrape_configs"][0]["static_configs"][0]["targets"] == [f"verifier:{resolved['metrics-port']}"]
    image = (DEPLOY / "docker" / "Dockerfile").read_text()
    _, *by_itself = json.loads(image.rpartition("CMD ")[2])
    assert settings([flag.replace("/opt/outrider", str(ROOT)) for flag in by_itself])["model"] == ("demo",)
    assert image.index("pip install") < image.index("COPY . .")  # a change of the sources does not install torch again
    gpu = yaml.safe_load((DEPLOY / "compose.gpu.yaml").read_text())["services"]
    assert gpu.keys() <= compose["services"].keys()
    test = compose["services"]["verifier"]["healthcheck"]["test"]
    assert test[:3] == ["CMD", "python", "-c"]
    compile(test[3], "healthcheck", "exec")
    patience = int(compose["services"]["verifier"]["stop_grace_period"].removesuffix("s"))
    assert patience > float(str(resolved["drain-timeout-s"]))
    for file in (DEPLOY / "compose.yaml").read_text().split():
        if file.startswith("./"):
            assert (DEPLOY / file.split(":")[0]).exists(), file

    unit = (DEPLOY / "systemd" / "outrider-verifier.service").read_text()
    start = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    program, command, *flags = shlex.split(start.removeprefix("ExecStart="))
    assert (Path(program).name, command) == ("cloud-verifier", "serve")
    resolved = settings([flag.replace("/etc/outrider", str(DEPLOY)) for flag in flags])
    assert resolved["model"] == ("demo",)
    assert "TRITON_CACHE_DIR=/var/lib/outrider/" in unit  # the home folder, Triton's default, is closed
    stop = next(line for line in unit.splitlines() if line.startswith("TimeoutStopSec="))
    assert int(stop.partition("=")[2]) > float(str(resolved["drain-timeout-s"]))


@pytest.mark.parametrize(("unit", "options"), [("outrider-verifier", []), ("outrider-edge", ["--user"])])
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_every_line_of_the_units(
    unit: str, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # a user's manager wants one
    file = tmp_path / f"{unit}.service"
    text = (DEPLOY / "systemd" / file.name).read_text()
    file.write_text(
        re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE)
    )  # a program that is there
    done = subprocess.run(
        ["systemd-analyze", "verify", *options, str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_device_is_started_with_a_command_that_there_is() -> None:
    unit = (DEPLOY / "systemd" / "outrider-edge.service").read_text()
    start = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    with (DEPLOY / "launchd" / "outrider.edge-client.plist").open("rb") as file:
        agent = plistlib.load(file)
    for program, command, *flags in (shlex.split(start.removeprefix("ExecStart=")), agent["ProgramArguments"]):
        assert (Path(program).name, flags) == ("edge-client", [])
        assert command in edge_main.commands
    assert agent["Label"] == "outrider.edge-client"
    assert agent["KeepAlive"] == {"SuccessfulExit": False}  # as Restart=on-failure
    assert "Restart=on-failure" in unit
