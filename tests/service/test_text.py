"""Tokens into text piece by piece, with a byte-level tokenizer and tokens that no model would put side by side."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from cloud_verifier.serving.codec import Codec
from cloud_verifier.serving.text_codec import TextError
from speculation.answer_text import AnswerText

TEXTS = ["The quick brown fox, the lazy dog.", "Zwölf Boxkämpfer — äöü ß", "数字は好きですか 🐙🐙", "a  b\n\n\tc"]
TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}{% endfor %}<s>assistant:"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>")
    fast.chat_template = TEMPLATE
    path = tmp_path_factory.mktemp("tokenizer")
    fast.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def codec(folder: Path) -> Codec:
    return Codec(str(folder))


def decoded(codec: Codec, tokens: list[int]) -> str:
    return str(codec._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def answered(codec: Codec, tokens: list[int], *stop: str) -> tuple[str, int]:
    """The text of an answer and how many tokens it took."""
    text = AnswerText(codec.stream(), stop)
    for count, token in enumerate(tokens, 1):
        if text.push(token):
            return "".join(text.pieces) + text.rest(), count
    return "".join(text.pieces) + text.rest(), len(tokens)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text(codec: Codec, text: str) -> None:
    tokens = codec.encode_text(text)
    assert answered(codec, tokens) == (text, len(tokens))


@pytest.mark.parametrize("seed", range(40))
def test_any_tokens_join_to_what_they_decode_to(codec: Codec, seed: int) -> None:
    """Halves of characters, special tokens in between, bytes that are no UTF-8: a device may send them all."""
    rng = random.Random(seed)
    tokens = [rng.randrange(300) for _ in range(60)]
    assert answered(codec, tokens)[0] == decoded(codec, tokens)


@pytest.mark.parametrize("seed", range(40))
def test_a_stop_string_ends_the_text_where_it_first_comes(codec: Codec, seed: int) -> None:
    rng = random.Random(seed)
    tokens = codec.encode_text(" ".join(rng.choices(TEXTS, k=6)))
    whole = decoded(codec, tokens)
    at = rng.randrange(len(whole) - 5)
    stops = [whole[at : at + rng.randrange(1, 5)], "never 🐙 there"]
    text, count = answered(codec, tokens, *stops)
    assert text == whole[: whole.index(stops[0])]
    assert stops[0] in decoded(codec, tokens[:count])
    before = decoded(codec, tokens[: count - 1])
    assert stops[0] not in before or before.endswith("\N{REPLACEMENT CHARACTER}")  # it waits for half a character


def test_a_chat_ends_where_the_assistant_speaks(codec: Codec) -> None:
    tokens = codec.encode_chat([{"role": "user", "content": "fox?"}])
    assert decoded(codec, tokens) == "user: fox?assistant:"
    assert tokens.count(codec.encode_text("<s>")[0]) == 2


@pytest.mark.parametrize(
    ("template", "sentence"),
    [(None, "has no chat template"), ("{{ raise_exception('no') }}", "refuses these messages: no")],
)
def test_a_chat_that_cannot_be_rendered_is_refused(folder: Path, template: str | None, sentence: str) -> None:
    codec = Codec(str(folder))
    codec._tokenizer.chat_template = template
    with pytest.raises(TextError, match=sentence):
        codec.encode_chat([{"role": "user", "content": "fox?"}])


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="no tokenizer could be loaded from the folder"):
        Codec(str(tmp_path))
