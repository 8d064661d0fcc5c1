"""The commands as a user types them, against a real verifier with the demo pair."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from edge_client.client import EdgeClient
from netlab.verifier_process import VerifierProcess
from speculation.sampling import SamplingParams

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "models" / "demo"
SERVICE = "outrider.v1.VerifierService"


@pytest.fixture(scope="module")
def verifier() -> Iterator[VerifierProcess]:
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("GRPC_VERBOSITY", raising=False)  # as it is for users
        running = VerifierProcess(DEMO / "target", options=["--threads", "1"])
    with running:
        yield running


def run(module: str, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)


def test_generate_gives_the_words_of_the_python_api(verifier: VerifierProcess) -> None:
    with EdgeClient(verifier.address) as client:
        params = SamplingParams(temperature=0.8, max_tokens=24)
        expected = client.generate([{"role": "user", "content": "Find me a hotel"}], params, seed=5)
    done = run(
        *("edge_client", "generate", "--verifier", verifier.address, "--drafter", str(DEMO / "drafter-onnx")),
        *("--message", "Find me a hotel", "--seed", "5", "--max-tokens", "24", "--json"),
    )
    output = json.loads(done.stdout)
    assert done.returncode == 0
    assert tuple(output["token_ids"]) == expected.token_ids
    assert output["text"] == expected.text
    assert output["metrics"]["drafted_tokens"] > 0


def test_generate_takes_a_message_from_a_pipe_and_with_a_dash_a_prompt(verifier: VerifierProcess) -> None:
    arguments = ("generate", "--verifier", verifier.address, "--max-tokens", "8", "--temperature", "0")
    said = {
        name: run("edge_client", *arguments, *flags, given=given)
        for name, flags, given in (
            ("pipe", (), "Find me a hotel\n"),
            ("message", ("--message", "Find me a hotel"), ""),
            ("dash", ("--prompt", "-"), "Find me a hotel\n"),
            ("prompt", ("--prompt", "Find me a hotel\n"), ""),
        )
    }
    assert all(done.returncode == 0 and done.stdout.strip() for done in said.values())
    assert said["pipe"].stdout == said["message"].stdout
    assert said["dash"].stdout == said["prompt"].stdout
    assert said["pipe"].stdout != said["dash"].stdout


def test_chat_remembers_what_was_said(verifier: VerifierProcess) -> None:
    arguments = ("chat", "--verifier", verifier.address, "--seed", "1", "--temperature", "0", "--max-tokens", "24")
    both = run("edge_client", *arguments, given="I need a bus to Fresno\nTomorrow at 9 am\n")
    second_alone = run("edge_client", *arguments, given="Tomorrow at 9 am\n")
    assert both.returncode == second_alone.returncode == 0
    assert second_alone.stdout.strip()
    assert second_alone.stdout not in both.stdout


@pytest.mark.parametrize("kind", ["verifier", "edge"])
def test_doctors_find_everything_here(verifier: VerifierProcess, kind: str) -> None:
    if kind == "verifier":
        done = run("cloud_verifier", "doctor", "--json")
    else:
        drafter = str(DEMO / "drafter-onnx")
        done = run("edge_client", "doctor", "--verifier", verifier.address, "--drafter", drafter, "--json")
    assert done.returncode == 0, done.stdout
    assert all(finding["ok"] for finding in json.loads(done.stdout))


def test_the_edge_doctor_says_what_is_missing() -> None:
    done = run("edge_client", "doctor", "--verifier", "127.0.0.1:1", "--drafter", "/nowhere/at.gguf")
    assert done.returncode == 1
    assert "cannot be reached" in done.stdout
    assert "/nowhere/at.gguf" in done.stdout


@pytest.mark.parametrize(
    ("module", "arguments", "sentence"),
    [
        ("edge_client", ("generate", "--prompt", "x", "--verifier", "nowhere"), "HOST:PORT"),
        ("edge_client", ("generate", "--prompt", "x", "--verifier", "example.org:1"), "without TLS"),
        ("edge_client", ("generate", "--prompt", "x", "--temperature", "-1"), "temperature"),
        ("cloud_verifier", ("serve", "--model", "/nowhere/at/all"), "/nowhere/at/all"),
        ("cloud_verifier", ("serve", "--model", str(DEMO / "target"), "--host", "0.0.0.0"), "--insecure"),
    ],
)
def test_bad_input_gets_a_sentence_and_an_exit_code(module: str, arguments: tuple[str, ...], sentence: str) -> None:
    done = run(module, *arguments)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demo_writes_its_figures(tmp_path: Path) -> None:
    file = tmp_path / "demo.json"
    settings = ("--prompts", "1", "--max-tokens", "12", "--rtt-ms", "2", "--step-ms", "0", "--json", str(file))
    done = run("netlab.demo", *settings, "--temperature", "0.5", "--seed", "3")
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert (report["rtt_ms"], report["step_ms"], report["temperature"], report["seed"]) == (2, 0, 0.5, 3)
    assert report["same_words"] is True
    assert set(report["modes"]) == {"streaming", "sync", "outrider"}
    assert all(len(mode["token_ids"][0]) == 12 for mode in report["modes"].values())
    assert report["modes"]["streaming"]["drafted_tokens"] == 0 < report["modes"]["sync"]["drafted_tokens"]
    assert all(mode["uplink_bytes_per_token"] > 0 for mode in report["modes"].values())
    assert {name: list(tasks) for name, tasks in report["ms_per_token_by_task"].items()} == {
        name: ["booking"] for name in ("streaming", "sync", "outrider")
    }


def test_health_and_reflection(verifier: VerifierProcess) -> None:
    with grpc.insecure_channel(verifier.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            reply = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        reply = next(stub.ServerReflectionInfo(iter([request]), timeout=10))
        assert SERVICE in [service.name for service in reply.list_services_response.service]


def test_what_strangers_say_to_the_port_is_not_logged(verifier: VerifierProcess) -> None:
    """gRPC itself notes a farewell with the stranger's own words, escape codes and all, unless told not to."""
    preface, settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0\0\0\4\0\0\0\0\0"
    words, ping = b"\x1b[31mwords of a stranger", b"outrider"
    goodbye = b"\0\0" + bytes([8 + len(words)]) + b"\7\0\0\0\0\0" + bytes(4) + b"\0\0\0\1" + words
    with socket.create_connection(("127.0.0.1", verifier.port), timeout=30) as connection:
        connection.sendall(preface + settings + goodbye + b"\0\0\x08\6\0\0\0\0\0" + ping)
        heard = b""
        while ping not in heard and (data := connection.recv(65536)):  # until it has read all, or hangs up
            heard += data
    assert "stranger" not in verifier.log
