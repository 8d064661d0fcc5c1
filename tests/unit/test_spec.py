"""What `--drafter` may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_client.drafters import load_drafter
from edge_client.drafters.base import DrafterError
from edge_client.drafters.sources.spec import LocalModel, NamedDrafter, parse
from outrider_models.hub_model import HubModel


@pytest.mark.parametrize("spec", [None, "none", ""])
def test_none(spec: str | None) -> None:
    assert parse(spec) == []


@pytest.mark.parametrize(
    ("spec", "model"),
    [
        ("hf:org/repo", HubModel("org/repo")),
        ("hf:org/repo:Q4_K_M", HubModel("org/repo", None, "Q4_K_M")),
        ("hf:org/re.po-1_2@refs/pr/7:onnx/model.onnx", HubModel("org/re.po-1_2", "refs/pr/7", "onnx/model.onnx")),
        ("hf:org/repo@0123abc", HubModel("org/repo", "0123abc")),
    ],
)
def test_the_hub(spec: str, model: HubModel) -> None:
    assert parse(spec) == [model]
    assert str(model) == spec


@pytest.mark.parametrize("spec", ["hf:", "hf:repo", "hf:org/repo:", "hf:org/repo@", "hf:org/a/b", "hf:../../x/y"])
def test_what_is_no_name_of_the_hub(spec: str) -> None:
    with pytest.raises(DrafterError, match=r"expected hf:ORG/REPO"):
        parse(spec)


def test_a_chain(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    assert parse(f"ngram:3+history+{tmp_path}/m.gguf") == [
        NamedDrafter("ngram", "3"),
        NamedDrafter("history"),
        LocalModel(tmp_path / "m.gguf"),
    ]


def test_a_path_that_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "hf:a" / "b+demo.gguf"
    odd.parent.mkdir()
    odd.touch()
    monkeypatch.chdir(tmp_path)
    assert parse("hf:a/b+demo.gguf") == parse(Path("hf:a/b+demo.gguf")) == [LocalModel(Path("hf:a/b+demo.gguf"))]


def test_what_looks_like_the_hub_is_told_how_to_write_it() -> None:
    with pytest.raises(DrafterError, match=r"does not exist.*a model of the hub is written hf:org/repo"):
        parse("org/repo")


@pytest.mark.parametrize("spec", ["demo+ngram", "demo+demo", "ngram+demo+history"])
def test_a_chain_ends_with_its_only_model(spec: str) -> None:
    with pytest.raises(DrafterError, match="before at most one model"):
        load_drafter(spec)
