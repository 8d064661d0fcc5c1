"""A model exported with fewer tokens: the same model for text that these spell, and a drafter for the same target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from outrider.demo_pair import demo_folder
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from edge_client.cli import main
from edge_client.drafters import load_drafter
from edge_client.drafters.vocabulary.strategy import match
from edge_client.export.exporting import size_bytes
from edge_client.export.trimming import rows, spellings, trim, trimmed_copy
from models.demo.data import render
from models.demo.dialogues import DIALOGUES
from speculation.vocabulary.vocabulary import Vocabulary

DRAFTER, TARGET = Path(__file__).resolve().parents[2] / "models" / "demo" / "drafter", demo_folder() / "target"
TEXT = "".join(map(render, DIALOGUES))
SIZE = 1500


def parsed(folder: Path) -> dict[str, Any]:
    tokenizer: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return tokenizer


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trimmed") / "copy"
    assert trimmed_copy(DRAFTER, folder, SIZE, TEXT) == 1.0
    return folder


def test_a_trimmed_vocabulary_spells_everything_with_tokens_of_the_whole() -> None:
    whole = parsed(DRAFTER)
    full = Tokenizer.from_str(json.dumps(whole))
    used = full.encode(TEXT, add_special_tokens=False).ids
    trimmed = trim(whole, [*used, len(whole["model"]["vocab"])], SIZE)  # and an id that is no token's
    short = Tokenizer.from_str(json.dumps(trimmed))
    assert short.get_vocab_size() == SIZE
    assert set(trimmed["model"]["vocab"]) < set(whole["model"]["vocab"])
    other = "Größe 漢字\n\n12345, unaccustomed incomprehensibilities"
    assert short.decode(short.encode(other).ids) == other
    # What was used is kept; a token that is left out is spelled with kept ones.
    spelled = spellings(whole, trimmed)
    assert all(spelled)
    assert all(len(spelled[token_id]) == 1 for token_id in used)
    assert any(len(spelled[token_id]) > 1 for token_id in full.encode(other).ids)
    assert short.decode([piece for token_id in full.encode(other).ids for piece in spelled[token_id]]) == other
    kept = rows(whole, trimmed)
    assert kept == sorted(kept)
    assert [full.id_to_token(row) for row in kept] == [short.id_to_token(at) for at in range(SIZE)]
    assert [kept[added["id"]] for added in trimmed["added_tokens"]] == [added["id"] for added in whole["added_tokens"]]


def test_a_copy_says_what_its_source_says_of_the_tokens_it_kept(copy: Path) -> None:
    kept = rows(parsed(DRAFTER), parsed(copy))
    ids = AutoTokenizer.from_pretrained(copy).encode(TEXT, add_special_tokens=False)[:200]
    models: list[Any] = [AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32) for f in (copy, DRAFTER)]
    with torch.inference_mode():
        ours = models[0](input_ids=torch.tensor([ids])).logits[0]
        theirs = models[1](input_ids=torch.tensor([[kept[token_id] for token_id in ids]])).logits[0, :, kept]
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert kept[models[0].config.eos_token_id] == models[1].config.eos_token_id
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (copy, DRAFTER)]
    asked = [{"role": "user", "content": "Hello"}]
    assert len({one.apply_chat_template(asked, tokenize=False) for one in tokenizers}) == 1


@pytest.mark.parametrize("kind", ["onnx", "gguf"])
def test_an_exported_copy_guesses_the_targets_tokens(kind: str, tmp_path: Path) -> None:
    text = tmp_path / "answers.txt"
    text.write_text(TEXT)
    arguments = ["export", "--model", str(DRAFTER), "--format", kind, "--vocabulary", str(SIZE)]
    arguments += ["--calibration", str(text), "--output", str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout[done.stdout.index("{") :])
    assert (report["vocabulary"], report["kept"]) == (SIZE, 1.0)
    whole = {"onnx": DRAFTER.parent / "drafter-onnx", "gguf": DRAFTER.parent / "drafter.gguf"}[kind]
    assert report["size_bytes"] < 0.8 * size_bytes(whole)
    trimmed, plain = load_drafter(report["path"]), load_drafter(DRAFTER.parent / "drafter-onnx")
    assert trimmed is not None
    assert plain is not None
    found = match(trimmed, Vocabulary.of_tokenizer(parsed(TARGET)), plain.info.vocabulary_size)
    assert found.speaking is not None
    ids = AutoTokenizer.from_pretrained(TARGET).encode(TEXT, add_special_tokens=False)[:240]
    agreed = 0
    drafters = (found.speaking(), plain)
    for token_id in ids:
        guesses = []
        for drafter in drafters:
            drafter.feed([token_id])
            guesses.append(int(drafter.candidates().ids[0]))
        agreed += guesses[0] == guesses[1]
    assert agreed > 0.9 * len(ids)
    for drafter in drafters:
        drafter.close()


@pytest.mark.parametrize(
    ("options", "status", "complaint"),
    [
        (["--vocabulary", "200"], 1, "a vocabulary of 200 tokens has no room for 261 special tokens and bytes"),
        (["--vocabulary", "4096"], 1, "the vocabulary has 4096 tokens, and 4096 are no fewer"),
        (["--calibration", str(DRAFTER / "config.json")], 2, "--calibration says which tokens to keep; give"),
    ],
)
def test_what_cannot_be_trimmed_is_refused(options: list[str], status: int, complaint: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["export", "--model", str(DRAFTER), "--output", str(tmp_path), *options])
    assert done.exit_code == status
    assert complaint in " ".join(done.output.split())


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    tokenizer = parsed(DRAFTER)
    tokenizer["model"]["byte_fallback"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="only the vocabulary of a byte-level BPE can be trimmed"):
        trimmed_copy(tmp_path, tmp_path / "copy", SIZE, "")
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        trimmed_copy(tmp_path / "copy", tmp_path / "other", SIZE, "")
