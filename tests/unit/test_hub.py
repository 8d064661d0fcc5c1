"""Models of the hub, on a hub that is a dictionary: nothing here asks the network."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest
from click.testing import CliRunner
from huggingface_hub import errors
from huggingface_hub.utils._paths import filter_repo_objects

from edge_client.cli import main
from edge_client.drafters.base import DrafterError
from outrider_models import hub, memory_check
from outrider_models.hub_model import HubModel

FILES = {
    "config.json": 10,
    "tokenizer.json": 10,
    "README.md": 10,
    "onnx/model.onnx": 400,
    "onnx/model.onnx_data": 4000,
    "onnx/model_q4.onnx": 500,
    "x-[odd]-Q8_0.gguf": 900,
}
COMMIT = "c0ffee"
MODEL = "org/tiny"


class FakeHub:
    """One repository; counts what is asked of it."""

    def __init__(self, cache: Path) -> None:
        self.folder = cache / "models--org--tiny"
        self.error: Exception | None = None
        self.downloads: list[str] = []

    def model_info(self, repo: str, *, revision: str | None, files_metadata: bool) -> Any:
        assert files_metadata
        if self.error is not None:
            raise self.error
        siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in FILES.items()]
        return SimpleNamespace(siblings=siblings, repo=repo, revision=revision)

    def snapshot_download(self, repo: str, *, revision: str | None, allow_patterns: list[str], **_: Any) -> str:
        assert repo == MODEL
        snapshot = self.folder / "snapshots" / COMMIT
        for name in filter_repo_objects(FILES, allow_patterns=allow_patterns):
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / name).write_bytes(b"x" * FILES[name])
            self.downloads.append(name)
        (self.folder / "refs").mkdir(exist_ok=True)
        (self.folder / "refs" / (revision or "main")).write_text(COMMIT)
        return str(snapshot)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    made = FakeHub(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **_: made)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    return made


def answer(status: int) -> Any:
    return SimpleNamespace(status_code=status, headers={}, request=None)


def test_the_chosen_file_comes_with_what_belongs_to_it_and_nothing_else(fake: FakeHub) -> None:
    file = hub.fetch(HubModel(MODEL, choice="model.onnx"))
    assert file.read_bytes() == b"x" * 400
    assert file == fake.folder / "snapshots" / COMMIT / "onnx" / "model.onnx"
    assert sorted(fake.downloads) == ["config.json", "onnx/model.onnx", "onnx/model.onnx_data", "tokenizer.json"]


def test_signs_that_patterns_would_read_are_names(fake: FakeHub) -> None:
    assert hub.fetch(HubModel(MODEL, choice="q8_0")).name == "x-[odd]-Q8_0.gguf"
    assert fake.downloads == ["x-[odd]-Q8_0.gguf"]


@pytest.mark.parametrize("revision", [None, "v1.0", COMMIT])
@pytest.mark.parametrize("how", ["flag", "environment", "no network"])
def test_offline_the_cache_answers(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch, revision: str | None, how: str
) -> None:
    model = HubModel(MODEL, revision, "q4")
    fetched = hub.fetch(model)
    downloads = list(fake.downloads)
    fake.error = errors.OfflineModeIsEnabled("no route to host")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", how == "environment")
    assert hub.fetch(model, offline=how == "flag") == fetched
    assert hub.fetch(HubModel(MODEL, revision), offline=how == "flag") == fetched  # the only one in the cache
    assert fake.downloads == downloads


def test_offline_without_the_model(fake: FakeHub) -> None:
    with pytest.raises(DrafterError, match=r"hf:org/tiny@v2 is not in the cache .*offline: fetch it once"):
        hub.fetch(HubModel(MODEL, "v2"), offline=True)
    hub.fetch(HubModel(MODEL, choice="q4"))
    with pytest.raises(DrafterError, match=r"the cached part of hf:org/tiny:q8_0 \(offline\) has no 'q8_0'; there are"):
        hub.fetch(HubModel(MODEL, choice="q8_0"), offline=True)
    assert "x-[odd]-Q8_0.gguf" not in fake.downloads


@pytest.mark.parametrize(
    ("error", "complaint"),
    [
        (errors.RepositoryNotFoundError("404", response=answer(404)), "the hub has no model org/tiny"),
        (errors.GatedRepoError("403", response=answer(403)), "is gated: accept its terms"),
        (errors.RevisionNotFoundError("404", response=answer(404)), "has no revision 'v9'"),
        (errors.HFValidationError("bad name"), "names no model of the hub: bad name"),
        (ConnectionError("no route"), "the hub cannot be reached: fetch it once"),
    ],
)
def test_what_the_hub_refuses_is_said_in_a_sentence(fake: FakeHub, error: Exception, complaint: str) -> None:
    fake.error = error
    with pytest.raises(DrafterError, match=complaint):
        hub.fetch(HubModel(MODEL, "v9"))


def test_a_broken_download_says_that_it_can_go_on(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> str:
        raise OSError("the disk is full\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(DrafterError, match=r"could not be downloaded: the disk is full; the next try goes on there"):
        hub.fetch(HubModel(MODEL))
    assert not fake.downloads


def test_too_large_is_said_before_anything_is_fetched(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (hub, memory_check):
        monkeypatch.setattr(module, "available_bytes", lambda: 1000)
    with pytest.raises(DrafterError, match=r"does not fit.*these would fit: x-.*gguf \(0 MB\), onnx/model_q4\.onnx"):
        hub.fetch(HubModel(MODEL, choice="model.onnx"))
    assert not fake.downloads
    assert hub.fetch(HubModel(MODEL, choice="q8_0")).is_file()


@pytest.mark.parametrize("spec", [f"hf:{MODEL}:q4", f"{MODEL}:q4"])
def test_pull_fetches_and_says_where_the_model_lies_and_how_to_name_it(fake: FakeHub, spec: str) -> None:
    pulled = CliRunner().invoke(main, ["pull", spec])
    assert pulled.exit_code == 0, pulled.output
    assert str(fake.folder / "snapshots" / COMMIT / "onnx" / "model_q4.onnx") in pulled.output
    assert f"--drafter hf:{MODEL}:q4" in pulled.output
    assert "onnx/model_q4.onnx" in fake.downloads
    fake.error = OSError("no network")
    assert CliRunner().invoke(main, ["pull", spec]).exit_code == 0, "it is here"


def test_pull_without_a_network_is_one_sentence(fake: FakeHub) -> None:
    fake.error = OSError("no network")
    pulled = CliRunner().invoke(main, ["pull", MODEL])
    assert pulled.exit_code == 1
    assert "the hub cannot be reached: fetch it once with a network: edge-client pull hf:org/tiny" in pulled.output


def test_pull_of_what_is_no_model_of_the_hub(fake: FakeHub, tmp_path: Path) -> None:
    assert "needs no download" in CliRunner().invoke(main, ["pull", "ngram"]).output
    assert f"it is here: {tmp_path}" in CliRunner().invoke(main, ["pull", str(tmp_path)]).output
    for nothing in ("none", "nofile"):
        assert CliRunner().invoke(main, ["pull", nothing]).exit_code == 1
    assert fake.downloads == []
