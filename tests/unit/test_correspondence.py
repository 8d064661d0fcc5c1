"""What tokens spell, which tokens of two vocabularies are the same, and what follows from that."""

from __future__ import annotations

import pytest

from speculation.vocabulary.correspondence import Correspondence, Way
from speculation.vocabulary.vocabulary import Vocabulary
from tests.other_vocabularies import TEXT, byte_level, sentencepiece

LETTERS = tuple(chr(code) for code in range(0x21, 0x7F))


def of(*strings: str, special: tuple[str, ...] = ()) -> Vocabulary:
    return Vocabulary(
        (*LETTERS, *strings, *special), frozenset(len(LETTERS) + len(strings) + i for i in range(len(special)))
    )


def token(vocabulary: Vocabulary, text: str) -> int:
    return vocabulary.strings.index(text)


@pytest.mark.parametrize(
    ("strings", "spelled"),
    [
        (("Ġthe", "Ċ", "Ã¼"), (b" the", b"\n", b"\xc3\xbc")),
        (("▁the", "<0x0A>", "ü"), (b" the", b"\n", b"\xc3\xbc")),
        (("the", "<0x0A>", "ü"), (b"the", b"<0x0A>", b"\xc3\xbc")),
        (("Ġthe", "你"), (b" the", "你".encode())),  # an added token is plain text
    ],
)
def test_spellings(strings: tuple[str, ...], spelled: tuple[bytes, ...]) -> None:
    assert Vocabulary(strings).spellings == spelled


def test_special_tokens_spell_nothing() -> None:
    assert Vocabulary(("Ġa", "<|end|>"), frozenset({1})).spellings == (b" a", b"")


def test_bytes_that_are_no_utf8_are_spelled_as_they_are() -> None:
    assert Vocabulary((b"\xff".decode("utf-8", "surrogateescape"),)).spellings == (b"\xff",)


def test_the_opening_token_is_read_from_the_post_processor() -> None:
    def parsed(processor: object) -> dict[str, object]:
        added = [{"id": 1, "content": "<s>", "special": True}]
        return {"model": {"vocab": {"a": 0, "<s>": 1}}, "added_tokens": added, "post_processor": processor}

    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]}
    assert Vocabulary.of_tokenizer(parsed(template)).opening == 1
    assert Vocabulary.of_tokenizer(parsed({"type": "Sequence", "processors": [{}, template]})).opening == 1
    assert Vocabulary.of_tokenizer(parsed({**template, "single": [{"Sequence": {"id": "A"}}]})).opening is None
    assert Vocabulary.of_tokenizer(parsed(None)).opening is None


def test_tokens_correspond_across_ways_of_writing() -> None:
    drafter, target = of("▁the", "▁cat"), of("Ġcat", "Ġthe")
    both = Correspondence(drafter, target)
    assert both.target_of[token(drafter, "▁the")] == token(target, "Ġthe")
    assert both.drafter_tokens(token(target, "Ġcat")) == (token(drafter, "▁cat"),)
    assert both.way() is Way.RENUMBERED


def test_a_token_that_the_drafter_has_not_is_spelled() -> None:
    drafter, target = of("Ġ", "Ġc", "Ġca"), of("Ġ", "Ġc", "Ġca", "Ġcat")
    both = Correspondence(drafter, target)
    assert both.drafter_tokens(token(target, "Ġcat")) == (token(drafter, "Ġca"), token(drafter, "t"))
    assert both.drafter_tokens(len(target.strings)) == ()  # padding


def test_special_tokens_correspond_by_name_then_by_role() -> None:
    drafter = of("Ġa", special=("<|user|>", "</s>", "<|eot_id|>"))
    target = of("Ġa", special=("<|endoftext|>", "<|im_end|>", "<|user|>", "<|image|>"))
    both = Correspondence(drafter, target)
    end = token(drafter, "<|eot_id|>")
    assert both.special(token(target, "<|user|>")) == token(drafter, "<|user|>")
    assert both.special(token(target, "<|im_end|>")) == both.special(token(target, "<|endoftext|>")) == end
    assert both.target_of[end] == token(target, "<|im_end|>")  # the likelier of the two
    assert both.special(token(target, "<|image|>")) is None
    assert both.spelling(token(target, "<|image|>")) == b"<|image|>"


@pytest.mark.parametrize(("missing", "way"), [(1, Way.INTERSECTION), (60, Way.TRANSLATED)])
def test_few_missing_tokens_make_an_intersection_and_many_a_translation(missing: int, way: Way) -> None:
    words = tuple(f"Ġword{i}" for i in range(100))
    assert Correspondence(of(*words[missing:]), of(*words)).way() is way


def test_a_drafter_without_the_targets_letters_has_no_way() -> None:
    assert Correspondence(Vocabulary(("a", "b")), of("Ġa")).way() is Way.NONE
    assert Correspondence(of(), Vocabulary(())).way() is Way.NONE


def test_the_two_kinds_of_the_tests() -> None:
    assert Correspondence(sentencepiece(), byte_level()).way() is Way.TRANSLATED
    assert Correspondence(byte_level(), sentencepiece()).way() is Way.TRANSLATED
    assert Correspondence(sentencepiece(), byte_level()).drafter.tokens(TEXT.encode())
