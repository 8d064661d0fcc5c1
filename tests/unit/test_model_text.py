"""A drafter's own words: the tokens and the text that its model's tokenizer would give."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cloud_verifier.serving.codec import Codec
from edge_client.drafters import load_drafter
from edge_client.drafters.base import DrafterError
from edge_client.drafters.lookup.ngram import NgramDrafter
from outrider_models.model_text import ModelText, SpelledText, template_of
from speculation.vocabulary.vocabulary import Vocabulary
from tests.speaking import letter_text

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"
CHAT = [{"role": "user", "content": "Find me a hotel, é €"}, {"role": "assistant", "content": "Where?\n\n  <|end|>"}]


@pytest.fixture(scope="module", params=["drafter-onnx", "drafter.gguf"])
def text(request: pytest.FixtureRequest) -> Iterator[ModelText]:
    if request.param.endswith("gguf"):
        pytest.importorskip("llama_cpp")
    drafter = load_drafter(DEMO / request.param)
    assert drafter is not None
    yield drafter.model_text()
    drafter.close()


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(str(DEMO / "target"))


def test_tokens_are_those_of_the_models_own_tokenizer(text: ModelText, codec: Codec) -> None:
    assert text.encode_chat(CHAT) == codec.encode_chat(CHAT)
    for words in ("Hello there", " é €\n\tx", "<|user|>Hello<|end|>", "日本語"):
        assert text.encode_more(words) == codec.encode_text(words)
    assert text.encode_more("") == []
    assert 3 in text.end_ids


def test_text_comes_as_the_verifier_would_say_it(text: ModelText, codec: Codec) -> None:
    tokens = text.encode_more(" é € 日本語 and a 🦉")
    ours, theirs = text.stream(), codec.stream()
    assert [ours.push(token) for token in tokens] == [theirs.push(token) for token in tokens]
    assert ours.rest() == theirs.rest() == ""


def test_an_unfinished_character_is_held_back() -> None:
    stream = SpelledText([b"a", "é".encode()[:1], "é".encode()[1:]], spaced=False)
    assert [stream.push(token) for token in (0, 1, 2, 1, 99)] == ["a", "", "é", "", ""]
    assert stream.rest() == "\ufffd"


def test_sentencepiece_begins_without_its_space() -> None:
    vocabulary = Vocabulary(("▁", "▁Hello", "▁there", "x"))
    text = ModelText("sp", vocabulary, lambda _text, _opening: [0, 3], "", {}, frozenset())
    assert "".join(map(text.stream().push, (1, 2, 3))) == "Hello therex"
    assert "".join(map(text.stream([3]).push, (1, 2, 3))) == " Hello therex"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("", "no chat template"),
        ("{{ raise_exception('only users may speak') }}", "only users may speak"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{{ ().__class__.__base__.__subclasses__() }}", "refuses"),
        ("{% for %}", "refuses"),
    ],
)
def test_a_template_that_cannot_be_used_gives_a_sentence(template: str, message: str) -> None:
    letters = letter_text()
    text = ModelText("m", letters.vocabulary, letters.tokenize, template, {}, frozenset())
    with pytest.raises(DrafterError, match=message):
        text.encode_chat(CHAT)


def test_the_default_of_several_templates_is_taken() -> None:
    several: Sequence[dict[str, str]] = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    assert template_of({"chat_template": several}) == "D"
    assert template_of({"chat_template": "one"}) == "one"
    assert template_of(json.loads('{"chat_template": 3}')) == ""


def test_a_lookup_has_no_words_of_its_own() -> None:
    assert NgramDrafter().speaker() is None
    with pytest.raises(DrafterError, match="no words of its own"):
        NgramDrafter().model_text()
