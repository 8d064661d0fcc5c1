"""What `cloud-verifier serve --engine vllm` takes and refuses. None of it needs vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from cloud_verifier import cli
from cloud_verifier.engines.base import ModelError
from cloud_verifier.engines.vllm import options
from cloud_verifier.engines.vllm.options import arguments_of, missing, parse_extra

MODELS = Path(__file__).resolve().parents[2] / "models"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs the command on a folder with vLLM 0.32.1 at hand; "loading" in the output if it would be loaded now."""
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(cli, "_serve", lambda *_: click.echo("loading"))
    monkeypatch.setattr(options, "installed_version", lambda: "0.32.1")
    base = ["serve", "--model", str(tmp_path), "--port", "0"]
    return lambda *flags: CliRunner().invoke(cli.main, [*base, *flags])


def test_options_of_vllm_go_through_by_their_own_names() -> None:
    extra = parse_extra(["block_size=32", "--enable-prefix-caching=False", "kv-cache-dtype=fp8", "hf-overrides={}"])
    assert extra == {
        "block-size": "32",
        "enable-prefix-caching": "False",
        "kv-cache-dtype": "fp8",
        "hf-overrides": "{}",
    }
    assert arguments_of(extra) == [
        "--block-size=32",
        "--no-enable-prefix-caching",
        "--kv-cache-dtype=fp8",
        "--hf-overrides={}",
    ]
    assert arguments_of({"enable-prefix-caching": "true"}) == ["--enable-prefix-caching"]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("block-size", "NAME=VALUE"),
        ("=3", "NAME=VALUE"),
        ("max_num_seqs=4", "--max-sessions"),
        ("dtype=half", "--dtype"),
        ("speculative-config={}", "the devices are what speculates"),
        ("scheduler-cls=mine", "its own"),
    ],
)
def test_what_the_verifier_sets_itself_is_refused(value: str, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        parse_extra([value])


def test_an_option_given_twice_is_refused() -> None:
    with pytest.raises(ModelError, match="twice"):
        parse_extra(["block-size=16", "block_size=32"])


@pytest.mark.parametrize(
    ("version", "told"),
    [(None, "not installed"), ("0.33.0", "0.33.0 is installed"), ("0.3.2", "0.3.2 is"), ("0.32.0", "")],
)
def test_only_the_version_that_was_tried_is_used(
    monkeypatch: pytest.MonkeyPatch, version: str | None, told: str
) -> None:
    monkeypatch.setattr(options, "installed_version", lambda: version)
    assert told in missing()
    assert bool(missing()) == bool(told)


def test_a_good_start_goes_on_to_loading(serve: Any) -> None:
    result = serve("--engine", "vllm", "--tensor-parallel-size", "2", "--vllm-option", "block-size=32")
    assert (result.exit_code, result.output) == (0, "loading\n")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--engine", "vllm", "--gpu-layers", "3"], "llama.cpp's"),
        (["--engine", "vllm", "--step-ms", "3"], "pad the steps of the other engines"),
        (["--engine", "vllm", "--draft-model", str(MODELS / "demo" / "target")], "give --own-guesses ngram"),
        (["--engine", "vllm", "--device", "cuda:1"], "CUDA_VISIBLE_DEVICES"),
        (["--engine", "vllm", "--threads", "2", "--tensor-parallel-size", "2"], "VLLM_CPU_OMP_THREADS_BIND"),
        (["--engine", "vllm", "--model", "other=/nowhere"], "one model"),
        (["--engine", "vllm", "--vllm-option", "seed=3"], "each answer has its own"),
        (["--tensor-parallel-size", "2"], "is for --engine vllm"),
        (["--quantization", "fp8"], "is for --engine vllm"),
        (["--engine", "torch", "--vllm-option", "block-size=32"], "is for --engine vllm"),
    ],
)
def test_what_does_not_apply_is_refused_before_loading(serve: Any, flags: list[str], told: str) -> None:
    result = serve(*flags)
    assert result.exit_code == 1
    assert told in result.output


def test_without_vllm_it_says_how_to_get_it(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "installed_version", lambda: None)
    result = serve("--engine", "vllm")
    assert result.exit_code == 1
    assert "docs/vllm.md" in result.output


def test_a_gguf_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    result = CliRunner().invoke(cli.main, ["serve", "--model", str(file), "--engine", "vllm", "--port", "0"])
    assert result.exit_code == 1
    assert "GGUF" in result.output
    assert "vllm" in result.output
