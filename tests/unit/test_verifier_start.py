"""What `cloud-verifier serve` refuses before it loads anything, in one sentence each."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from cloud_verifier import cli, model_source
from cloud_verifier.model_source import LLAMA, TORCH, ModelSourceError, check_model, engine_of, gguf_file
from cloud_verifier.serving.address import Address, ServerError
from outrider_models import hub


@pytest.fixture
def used_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text("{}")
    return str(tmp_path)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command; "loading" in the output if a model would be loaded now."""
    monkeypatch.setattr(cli, "_serve", lambda *_: click.echo("loading"))
    return lambda *flags: CliRunner().invoke(cli.main, ["serve", *flags])


def test_a_good_start_goes_on_to_loading(serve: Any, folder: str) -> None:
    result = serve("--model", folder, "--port", "0")
    assert (result.exit_code, result.output) == (0, "loading\n")


def test_the_model_may_stand_alone_and_must_stand_somewhere(serve: Any, folder: str) -> None:
    assert serve(folder, "--port", "0").output == "loading\n"
    result = serve("--port", "0")
    assert result.exit_code == 2
    assert "cloud-verifier serve MODEL" in result.output


def test_own_guesses_have_one_source_which_must_be_there(serve: Any, folder: str) -> None:
    assert serve(folder, "--port", "0", "--own-guesses", "ngram").output == "loading\n"
    assert serve(folder, "--port", "0", "--draft-model", folder).output == "loading\n"
    both = serve(folder, "--port", "0", "--draft-model", folder, "--own-guesses", "ngram")
    assert both.exit_code == 1
    assert "give one" in both.output
    nowhere = serve(folder, "--port", "0", "--draft-model", "/nowhere/at/all")
    assert nowhere.exit_code == 1
    assert "/nowhere/at/all" in nowhere.output


def test_a_port_in_use_is_refused_before_loading_and_says_what_to_do(serve: Any, folder: str, used_port: int) -> None:
    result = serve("--model", folder, "--port", str(used_port))
    assert result.exit_code == 1
    assert f"port {used_port} of 127.0.0.1" in result.output
    assert "--port" in result.output
    assert "GRPC" not in result.output
    assert "loading" not in result.output


def test_plaintext_off_the_loopback_and_bad_files_are_refused_before_loading(
    serve: Any, folder: str, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("no PEM and no TOML = [")
    for flags, said in (
        (["--host", "0.0.0.0"], "--insecure"),
        (["--host", "no.such.host.invalid", "--insecure"], "--host"),
        (["--ssl-certfile", str(wrong)], "--ssl-keyfile"),
        (["--ssl-certfile", str(wrong), "--ssl-keyfile", str(wrong)], "PEM"),
        (["--api-keys", str(wrong)], "TOML"),
    ):
        result = serve("--model", folder, "--port", "0", *flags)
        assert result.exit_code == 1
        assert said in result.output
        assert "loading" not in result.output


def test_a_successor_may_share_the_port() -> None:
    with socket.socket() as first:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        first.bind(("127.0.0.1", 0))
        first.listen()
        port = first.getsockname()[1]
        Address(port=port, reuse_port=True).check()
        with pytest.raises(ServerError, match="another program"):
            Address(port=port).check()


def test_missing_packages_are_named_with_the_command_that_brings_them(
    serve: Any, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("torch", "grpc_health") else found(name)
    )
    result = serve("--model", folder)
    assert result.exit_code == 1
    assert "torch, grpcio-health-checking" in result.output
    assert "pip install '.[verifier]'" in result.output


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("nofolder", "no folder nofolder, and a hub id is written ORG/NAME"),
        ("./nofolder/x", r"There is no folder \./nofolder/x\."),
        ("../nofolder", r"There is no folder \.\./nofolder\."),
        ("/nofolder/x", r"There is no folder /nofolder/x\."),
        ("no/folder/x", "no folder no/folder/x, and"),
        ("~/nofolder", r"There is no folder ~/nofolder\."),
    ],
)
def test_a_path_that_is_not_there_is_not_taken_for_a_hub_id(model: str, said: str) -> None:
    with pytest.raises(ModelSourceError, match=said):
        check_model(model, TORCH)


def test_other_files_are_no_targets(tmp_path: Path) -> None:
    other = tmp_path / "target.bin"
    other.write_bytes(b"")
    with pytest.raises(ModelSourceError, match="is a file, and not of GGUF; give the folder"):
        check_model(str(other), TORCH)
    with pytest.raises(ModelSourceError, match=r"has no config\.json"):
        check_model(str(tmp_path), TORCH)


def test_the_engine_follows_from_the_model(tmp_path: Path) -> None:
    blob, folder, model = tmp_path / "sha256-00", tmp_path / "files", tmp_path / "transformers"
    blob.write_bytes(b"GGUF\x03\0\0\0")
    for made in (folder, model):
        made.mkdir()
        (made / "some.gguf").write_bytes(b"GGUF\x03\0\0\0")
    (model / "config.json").write_text("{}")
    for ggufs in (str(blob), str(folder), "missing.gguf", "hf:org/name:Q4_K_M"):
        assert engine_of(ggufs, "auto") == engine_of(ggufs, LLAMA) == LLAMA
        with pytest.raises(ModelSourceError, match="torch does not"):
            engine_of(ggufs, TORCH)
    for other in (str(model), "org/name"):
        assert engine_of(other, "auto") == engine_of(other, TORCH) == TORCH
        with pytest.raises(ModelSourceError, match="is no GGUF model"):
            engine_of(other, LLAMA)


def test_a_gguf_that_cannot_be_served_is_refused_before_it_is_loaded(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\0")
    (tmp_path / "no.gguf").write_text("text")
    for model, said in (
        (str(tmp_path / "cut.gguf"), "damaged or incomplete"),
        (str(tmp_path / "no.gguf"), "is not a GGUF file"),
        (str(tmp_path / "missing.gguf"), "cannot open"),
        ("hf:nothing", "names no model of the hub"),
    ):
        result = serve("--model", model)
        assert result.exit_code == 1
        assert said in result.output.replace("\n", " ")
    monkeypatch.setattr(model_source, "is_installed", lambda _package: False)
    result = serve("--model", str(tmp_path / "no.gguf"))
    assert result.exit_code == 1
    assert "served by llama.cpp, which is not installed here" in result.output
    assert ".[llama]" in result.output


def test_only_gguf_files_of_a_repository_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"model.onnx": 3, "tokenizer.json": 1, "config.json": 1}
    monkeypatch.setattr(hub, "_listing", lambda _hub, _model: sizes)
    with pytest.raises(ModelSourceError, match=r"hf:org/name has no \.gguf file"):
        gguf_file("hf:org/name")


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    asked = []

    def unreachable(_api: Any, model: str, **_: Any) -> None:
        asked.append(model)
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(ModelSourceError, match=r"cache .* does not have it, and the hub cannot be reached"):
        check_model("org/name", TORCH)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(tmp_path / "config.json"))
    check_model("org/name", TORCH)
    assert constants.HF_HUB_OFFLINE  # nothing that loads it asks again
    check_model("org/name", TORCH)
    assert len(asked) == 2
