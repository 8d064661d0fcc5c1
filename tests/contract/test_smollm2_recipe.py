"""The recipe that makes a drafter of a target, on a tiny target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM

from edge_client.drafters import load_drafter
from edge_client.drafters.vocabulary.strategy import match
from edge_client.export.trimming import rows, spellings, trim
from models.demo.dialogues import DIALOGUES
from models.smollm2.data import Example, Writer
from models.smollm2.train import Distillation, make, overlap, shrunk
from speculation.vocabulary.vocabulary import Vocabulary
from tests.contract.tiny_models import UNUSED_IDS, save_transformers

TEXT = " ".join(message["content"] for message in DIALOGUES[0]) + " Größe 漢字\n\n12345"
SIZE = 400


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("target")
    save_transformers(folder)
    model: Any = LlamaForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(model.config.vocab_size - UNUSED_IDS)  # a random model would write them
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(target: Path) -> dict[str, Any]:
    tokenizer: dict[str, Any] = json.loads((target / "tokenizer.json").read_text())
    return tokenizer


@pytest.fixture(scope="module")
def trimmed(whole: dict[str, Any]) -> dict[str, Any]:
    return trim(whole, Tokenizer.from_str(json.dumps(whole)).encode(TEXT).ids, SIZE)


def test_the_whole_target_overlaps_with_itself(target: Path, whole: dict[str, Any]) -> None:
    model: Any = LlamaForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    everything = trim(whole, [], len(whole["model"]["vocab"]))
    kept = rows(whole, everything)
    same = shrunk(model, model.config.num_hidden_layers, kept)
    examples = [Example([*range(20, 40)], 5), Example([*range(300, 312)], 1)]
    variation, _ = Distillation(model, same, kept, spellings(whole, everything)).losses(examples)
    assert variation.shape == (15 + 11,)
    assert variation.max() < 1e-5
    assert overlap(Distillation(model, same, kept, spellings(whole, everything)), []) is None


def test_total_variation_is_counted_at_the_last_piece_of_every_token(
    target: Path, whole: dict[str, Any], trimmed: dict[str, Any]
) -> None:
    model: Any = LlamaForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    kept, spelled = rows(whole, trimmed), spellings(whole, trimmed)
    drafter = shrunk(model, 1, kept)
    rare = next(token_id for token_id, pieces in enumerate(spelled) if len(pieces) > 1)
    tokens = [kept[30], rare, kept[40], kept[50]]
    variation, _ = Distillation(model, drafter, kept, spelled).losses([Example(tokens, 1)])
    ours = [*spelled[tokens[0]], *spelled[rare], *spelled[tokens[2]]]
    ends = [0, len(spelled[rare]), len(spelled[rare]) + 1]
    with torch.no_grad():
        p = model(input_ids=torch.tensor([tokens[:3]])).logits[0].div(0.8).softmax(-1)
        q = drafter(input_ids=torch.tensor([ours])).logits[0, ends].div(0.8).softmax(-1)
    spread = torch.zeros_like(p)
    spread[:, kept] = q
    assert torch.allclose(variation, 0.5 * (p - spread).abs().sum(-1), atol=1e-5)


def test_the_target_answers_itself(target: Path) -> None:
    model: Any = LlamaForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(target)
    examples = list(Writer(model, tokenizer, batch=4, seed=1).examples(0.0, answer_tokens=5, question_tokens=6))
    assert 2 <= len(examples) <= 4  # a question of the model's own may be empty
    for example in examples:
        # The first turn is greedy: a padded batch writes what the model writes alone.
        asked = torch.tensor([example.tokens[: example.answer_at]])
        alone = model.generate(
            asked, attention_mask=torch.ones_like(asked), max_new_tokens=5, do_sample=False, pad_token_id=0
        )
        assert example.tokens == alone[0].tolist()


def test_a_drafter_is_made_in_both_formats_and_speaks_the_targets_tokens(
    target: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    told = make(target, tmp_path, 4.0, device="cpu", layers=1, vocabulary=SIZE, batch=4, answer_tokens=4)
    assert json.loads((tmp_path / "training.json").read_text()) == told
    assert told["answers"] >= 2
    vocabulary = Vocabulary.of_tokenizer(whole)
    for place in ("drafter-onnx", "drafter.gguf"):
        assert told["bytes"][place.rpartition(".")[2].removeprefix("drafter-")] > 10_000
        model = load_drafter(str(tmp_path / place))
        assert model is not None
        assert model.info.vocabulary_size == SIZE
        found = match(model, vocabulary, len(whole["model"]["vocab"]))
        assert found.speaking is not None
        drafter = found.speaking()
        drafter.feed([0, 1, 300, 500])
        assert len(drafter.candidates().ids) > 0
        drafter.close()
