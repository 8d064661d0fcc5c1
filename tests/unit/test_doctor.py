"""What `edge-client doctor` finds about runtimes and providers."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import pytest
from outrider.v1 import verifier_pb2 as pb

from cloud_verifier.serving.address import Address
from edge_client import doctor
from edge_client.drafters.onnx import providers
from edge_client.drafters.settings import DeviceSettings
from tests.harness import InProcessVerifier
from tests.mock_engine import MockEngine
from tests.security.certificates import Authority

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"


def test_an_accelerator_that_is_there_but_not_used_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "available_providers", lambda: ["cpu", "coreml"])
    finding = doctor._providers("cpu")
    assert finding.ok
    assert finding.detail == "cpu asked for; there is cpu, coreml; --provider auto would try coreml"
    assert doctor._providers("auto").detail == "auto asked for; there is cpu, coreml"


@pytest.mark.parametrize(
    ("there", "asked", "detail"),
    [
        (["cpu"], "cuda:device_id=0", "but not cuda: install the build of ONNX Runtime that has it"),
        (["cpu"], "gpu", "no provider 'gpu'"),
        ([], "cuda", "ONNX Runtime is not installed"),
    ],
)
def test_a_provider_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, there: list[str], asked: str, detail: str
) -> None:
    monkeypatch.setattr(providers, "available_providers", lambda: there)
    finding = doctor._providers(asked)
    assert not finding.ok
    assert detail in finding.detail


@pytest.mark.parametrize(
    ("drafter", "missed"),
    [
        ("drafter.gguf", {"llama-cpp-python"}),
        ("ngram+drafter.gguf", {"llama-cpp-python"}),
        ("demo", {"onnxruntime"}),
        ("model.onnx", {"onnxruntime"}),
        ("ngram+history", set()),
        ("none", set()),
        ("hf:org/model-GGUF", set()),
    ],
)
def test_a_runtime_is_missed_only_if_the_drafter_needs_it(
    monkeypatch: pytest.MonkeyPatch, drafter: str, missed: set[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    found = [doctor._runtime(module, drafter) for module in doctor.RUNTIMES]
    assert {finding.what for finding in found if not finding.ok} == missed


def test_a_runtime_of_another_build_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "packages_distributions", lambda: {"onnxruntime": ["onnxruntime-gpu", "onnxruntime-gpu"]}
    )
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.99" if name == "onnxruntime-gpu" else real(name))
    assert doctor._runtime("onnxruntime", "demo").detail == "onnxruntime-gpu 1.99, ONNX drafters"


def test_what_the_drafter_really_runs_on_is_said() -> None:
    settings: dict[str, Any] = {"spec": "demo", "threads": 1}
    drafter, found = doctor._drafter(**settings, device=DeviceSettings(provider="qnn"))
    assert drafter is not None
    drafter.close()
    by_name = {finding.what: finding for finding in found}
    assert by_name["drafter"].ok
    assert not by_name["runs on"].ok
    assert "nodes on CPUExecutionProvider; the installed ONNX Runtime has no provider qnn" in by_name["runs on"].detail


def test_without_a_drafter_it_says_what_there_would_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    nothing, (chosen, could) = doctor._drafter("none", 1, DeviceSettings())
    assert nothing is None
    assert chosen.ok
    assert could.detail.startswith("ngram, which needs no model; `edge-client setup`")
    (tmp_path / "small.gguf").write_bytes((DEMO / "drafter.gguf").read_bytes())
    assert "models here: small.gguf" in doctor._models().detail


def test_a_clock_before_the_installation_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._clock().ok
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    finding = doctor._clock()
    assert not finding.ok
    assert finding.detail.startswith("1970-01-01 00:16 UTC, which is before Outrider was installed here")


def test_what_is_wrong_with_certificates_is_said_once_and_who_is_far_is_told(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.pair("server", "127.0.0.1")
    shown = authority.pair("laptop", "laptop.example")
    address = Address(port=0, certificate=pair.certificate, key=pair.key, client_authorities=authority.file)
    with InProcessVerifier(MockEngine(), address=address) as verifier:
        bad = {finding.what: finding for finding in doctor._verifier(verifier.address, "", None, authority.trusted())}
        assert set(bad) == {"verifier", "clock"}
        assert "asks devices for a certificate" in bad["verifier"].detail
        found = doctor._verifier(verifier.address, "", None, authority.trusted(shown))
        assert [finding.what for finding in found] == [
            *("verifier", "round trip", "certificate", "own certificate", "clock"),
        ]
        assert all(finding.ok for finding in found)
    assert "which is long" not in doctor._round_trip(20.0).detail
    assert "which is long" in doctor._round_trip(400.0).detail


def test_versions_that_do_not_fit_say_who_is_to_be_updated() -> None:
    assert doctor._versions(pb.GetModelInfoResponse(protocol_version=1, noise_version=1)) == []
    contract, noise = doctor._versions(pb.GetModelInfoResponse(protocol_version=2, noise_version=0))
    assert contract.detail.endswith("update the device")
    assert noise.detail.endswith("update the verifier")
    assert not contract.ok
    assert not noise.ok
