"""What `edge-client doctor` finds about runtimes and providers."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from outrider.v1 import verifier_pb2 as pb

from edge_client import doctor
from edge_client.drafters import providers
from edge_client.drafters.settings import DeviceSettings


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


def test_versions_that_do_not_fit_say_who_is_to_be_updated() -> None:
    assert doctor._versions(pb.GetModelInfoResponse(protocol_version=1, noise_version=1)) == []
    contract, noise = doctor._versions(pb.GetModelInfoResponse(protocol_version=2, noise_version=0))
    assert contract.detail.endswith("update the device")
    assert noise.detail.endswith("update the verifier")
    assert not contract.ok
    assert not noise.ok
