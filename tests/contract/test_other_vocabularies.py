"""Drafters of another vocabulary keep the contract in the target's tokens, and say in them what their model says."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.drafters.base import Drafter, DrafterError
from edge_client.drafters.lookup.chain import ChainDrafter
from edge_client.drafters.lookup.ngram import NgramDrafter
from edge_client.drafters.vocabulary.strategy import match
from edge_client.drafters.vocabulary.translated import TranslatedDrafter
from edge_client.riding.drafter_lease import DrafterLease
from speculation.vocabulary.correspondence import Way
from speculation.vocabulary.segmenter import Segmenter
from speculation.vocabulary.vocabulary import Vocabulary
from tests.other_vocabularies import TEXT, HashDrafter, ListDrafter, ParrotDrafter, byte_level, sentencepiece

PADDING = 7


def renumbered(vocabulary: Vocabulary) -> Vocabulary:
    """The same tokens in another order, with one special token more."""
    order = np.random.default_rng(3).permutation(len(vocabulary.strings)).tolist()
    special = frozenset(new for new, old in enumerate(order) if old in vocabulary.special) | {len(order)}
    return Vocabulary((*(vocabulary.strings[old] for old in order), "<|new|>"), special)


def cut(vocabulary: Vocabulary) -> Vocabulary:
    """Without some of its tokens."""
    kept = [text for i, text in enumerate(vocabulary.strings) if i < 300 or i % 50]
    return Vocabulary(tuple(kept), vocabulary.special)


PAIRS: dict[Way, Callable[[], tuple[Vocabulary, Vocabulary]]] = {  # drafter's and target's
    Way.RENUMBERED: lambda: (renumbered(byte_level()), byte_level()),
    Way.INTERSECTION: lambda: (cut(byte_level()), byte_level()),
    Way.TRANSLATED: lambda: (sentencepiece(), byte_level()),
}
both_ways = pytest.mark.parametrize(
    ("own", "target"),
    [(sentencepiece, byte_level), (byte_level, sentencepiece), (byte_level, lambda: sentencepiece(450))],
    ids=["short-to-long", "long-to-short", "bytes-to-pieces"],
)
every_way = pytest.mark.parametrize("way", PAIRS)


def speaking(drafter: Drafter, target: Vocabulary) -> Drafter:
    found = match(drafter, target, len(target.strings) + PADDING)
    assert found.speaking is not None, found
    return found.speaking()


def make(way: Way) -> tuple[Drafter, ListDrafter, Vocabulary]:
    own, target = PAIRS[way]()
    inner = HashDrafter(own)
    found = match(inner, target, len(target.strings) + PADDING)
    assert found.way is way
    assert found.speaking is not None
    return found.speaking(), inner, target


# --- one drafter, several targets -------------------------------------------------------------------------------

TARGETS: list[Callable[[], Vocabulary]] = [byte_level, lambda: renumbered(byte_level()), sentencepiece]


@pytest.mark.parametrize("chained", [False, True])
@settings(max_examples=60)
@given(
    visits=st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.integers(0, 430), min_size=1, max_size=6)), min_size=2, max_size=6
    )
)
def test_a_drafter_exchanged_for_another_target_knows_nothing_of_the_last(
    chained: bool, visits: list[tuple[int, list[int]]]
) -> None:
    def make() -> Drafter:
        model = HashDrafter(byte_level())
        return ChainDrafter([NgramDrafter()], model) if chained else model

    own = make()
    lease = DrafterLease(own)
    for which, tokens in visits:
        target = TARGETS[which]()
        found = match(own, target, len(target.strings) + PADDING)
        assert found.speaking is not None
        lease.exchange(found.speaking)
        lease.feed(tokens)
        fresh = speaking(make(), target)
        fresh.feed(tokens)
        assert lease.drafter.length == fresh.length == len(lease.tokens)
        ids, log_probs, _ = lease.drafter.candidates()
        same_ids, same_log_probs, _ = fresh.candidates()
        assert ids.tolist() == same_ids.tolist()
        assert log_probs.tolist() == same_log_probs.tolist()


# --- the contract -----------------------------------------------------------------------------------------------

Steps = st.lists(
    st.one_of(
        st.lists(st.integers(0, 430), min_size=1, max_size=8),  # feed these
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),  # feed the tokens of this
        st.sampled_from(["ask", " restaurant", "reser", " 你好", "\n"]),
        st.floats(0, 1),  # roll back to this share of the length
    ),
    min_size=1,
    max_size=12,
)


@every_way
@settings(max_examples=60)
@given(steps=Steps)
def test_any_feeds_and_rollbacks_end_like_one_feed(way: Way, steps: list[list[int] | str | float]) -> None:
    drafter, _, target = make(way)
    segmenter = Segmenter(target.spellings)
    held: list[int] = []
    for step in steps:
        if step == "ask":
            if held and drafter.length == len(held):
                drafter.rollback(len(held) - 1)
                drafter.feed(held[-1:])
                drafter.candidates()
        elif isinstance(step, float):
            keep = round(step * len(held))
            drafter.rollback(keep)
            del held[keep:]
        else:
            tokens = segmenter.tokens(step.encode()) if isinstance(step, str) else step
            drafter.feed(tokens)
            held += tokens
            drafter.candidates()
        assert drafter.length == len(held)
    if not held:
        return
    drafter.rollback(len(held) - 1)
    drafter.feed(held[-1:])
    fresh, _, _ = make(way)
    fresh.feed(held)
    found, expected = drafter.candidates(), fresh.candidates()
    assert found.ids.tolist() == expected.ids.tolist()
    np.testing.assert_array_equal(found.log_probs, expected.log_probs)
    assert len(set(found.ids.tolist())) == len(found.ids)
    assert ((found.ids >= 0) & (found.ids < len(target.strings))).all()
    assert (np.diff(found.log_probs) <= 0).all()
    assert np.exp(found.log_probs).sum() <= 1 + 1e-9


@settings(max_examples=80)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), cuts=st.data())
def test_the_model_never_reads_half_a_character(text: str, cuts: st.DataObject) -> None:
    """Target tokens are bytes here, so any of them may end inside of a character."""
    drafter, inner, target = make(Way.TRANSLATED)
    of_byte = {spelling: token for token, spelling in enumerate(target.spellings) if len(spelling) == 1}
    tokens = [of_byte[bytes([byte])] for byte in text.encode()]
    spellings = inner.vocabulary().spellings
    for end in range(1, len(tokens) + 1):
        drafter.feed(tokens[end - 1 : end])
        if cuts.draw(st.booleans()):
            back = cuts.draw(st.integers(0, end - 1))
            drafter.rollback(back)
            drafter.feed(tokens[back:end])
        so_far = text.encode()[:end]
        assert isinstance(drafter, TranslatedDrafter)
        read = b"".join(spellings[token] for token in drafter._wanted)
        read.decode()
        assert so_far.startswith(read)
        assert len(so_far) - len(read) <= 3
        assert inner.tokens == drafter._wanted[: len(inner.tokens)]
        if drafter.length == len(tokens):
            assert read == text.encode()


@every_way
def test_refusals_leave_everything_as_it_was(way: Way) -> None:
    drafter, _, target = make(way)
    tokens = Segmenter(target.spellings).tokens(b"I would like to book")
    with pytest.raises(DrafterError, match="feed"):
        drafter.candidates()
    drafter.feed(tokens)
    before = drafter.candidates()
    with pytest.raises(ValueError, match="empty"):
        drafter.feed([])
    for wrong in (-1, len(target.strings) + PADDING):
        with pytest.raises(ValueError, match=f"token id {wrong} is outside"):
            drafter.feed([5, wrong])
    for wrong in (-1, len(tokens) + 1):
        with pytest.raises(ValueError, match="cannot keep"):
            drafter.rollback(wrong)
    assert drafter.length == len(tokens)
    assert drafter.candidates() is before
    drafter.feed([len(target.strings) + PADDING - 1])  # padding is in the vocabulary and means nothing
    drafter.candidates()
    drafter.rollback(3)
    with pytest.raises(DrafterError, match="feed"):
        drafter.candidates()
    drafter.close()
    drafter.close()


@every_way
def test_a_rollback_evaluates_nothing(way: Way) -> None:
    drafter, inner, target = make(way)
    drafter.feed(Segmenter(target.spellings).tokens(TEXT.encode()))
    drafter.candidates()
    evaluated = inner.evaluated
    drafter.rollback(5)
    assert inner.evaluated == evaluated


def test_a_model_whose_context_is_full_says_nothing() -> None:
    inner = HashDrafter(sentencepiece(450), context_tokens=30)
    drafter = speaking(inner, byte_level())
    tokens = Segmenter(byte_level().spellings).tokens(TEXT.encode())[:28]
    drafter.feed(tokens)
    assert not len(drafter.candidates().ids)
    drafter.rollback(0)
    drafter.feed(tokens[:6])
    assert len(drafter.candidates().ids)


# --- what it says -----------------------------------------------------------------------------------------------


@both_ways
def test_what_the_model_knows_comes_out_in_the_targets_tokens(
    own: Callable[[], Vocabulary], target: Callable[[], Vocabulary]
) -> None:
    """A model that knows a text by heart guesses every token of it, wherever the two split it differently."""
    drafter = speaking(ParrotDrafter(own(), TEXT), target())
    tokens = Segmenter(target().spellings).tokens(TEXT.encode())
    right = []
    for token, following in itertools.pairwise(tokens):
        drafter.feed([token])
        found = drafter.candidates()
        right.append(len(found.ids) > 0 and found.ids[0] == following)
    wrong = [target().spellings[token] for token, hit in zip(tokens[1:], right, strict=True) if not hit]
    assert not wrong


@every_way
def test_drafting_costs_about_as_many_evaluations_as_the_model_has_tokens(way: Way) -> None:
    own, target = PAIRS[way]()
    inner = ParrotDrafter(own, TEXT)
    drafter = speaking(inner, target)
    for token in Segmenter(target.spellings).tokens(TEXT.encode()):
        drafter.feed([token])
        drafter.candidates()
    assert inner.evaluated <= 1.15 * len(inner.text)


def test_an_end_of_a_turn_is_one_whatever_its_name() -> None:
    target = Vocabulary((*byte_level().strings[:3], "<|im_end|>", *byte_level().strings[4:]), byte_level().special)

    class Ending(HashDrafter):
        def likely(self) -> tuple[list[int], list[float]]:
            return [3, 300], [0.9, 0.1]

    inner = Ending(sentencepiece())
    drafter = speaking(inner, target)
    drafter.feed([*Segmenter(target.spellings).tokens(b"Thanks!")])
    assert drafter.candidates().ids[0] == 3
    drafter.feed([3])
    drafter.candidates()
    assert inner.tokens[-1] == 3


def test_the_models_own_beginning_is_not_forgotten() -> None:
    own = sentencepiece()
    inner = HashDrafter(Vocabulary(own.strings, own.special, opening=0))
    drafter = speaking(inner, byte_level())
    tokens = Segmenter(byte_level().spellings).tokens(b"Thanks")
    drafter.feed(tokens)
    drafter.candidates()
    assert inner.tokens[:1] == [0]
    assert inner.tokens[1:2] != [0]
    drafter.rollback(0)
    drafter.feed([0, *tokens])  # the target's prompt has it
    drafter.candidates()
    assert inner.tokens[:1] == [0]
    assert inner.tokens[1:2] != [0]


# --- the way ----------------------------------------------------------------------------------------------------


def test_the_same_vocabulary_needs_nothing() -> None:
    drafter = HashDrafter(byte_level())
    found = match(drafter, byte_level(), 1000)
    assert found.way is Way.EQUAL
    assert found.speaking is not None
    assert found.speaking() is drafter


def test_no_common_ground() -> None:
    letters = Vocabulary(tuple("abcdefgh"))
    found = match(HashDrafter(Vocabulary(tuple("abcdefghijklmnop"))), byte_level(), 1000)
    assert (found.way, found.speaking) == (Way.NONE, None)
    assert "cannot spell" in found.sentence
    assert match(HashDrafter(byte_level()), letters, 8).way is not Way.NONE


def test_a_drafter_that_does_not_tell_its_tokens() -> None:
    class Mute(HashDrafter):
        def vocabulary(self) -> Vocabulary:
            return None  # type: ignore[return-value]

    assert match(Mute(sentencepiece()), byte_level(), 1000).way is Way.NONE


def test_in_a_chain_the_model_is_translated_and_the_lookups_are_not() -> None:
    inner = ParrotDrafter(sentencepiece(), TEXT)
    chain = speaking(ChainDrafter([NgramDrafter()], inner), byte_level())
    chain.adopt_vocabulary(byte_level().fingerprint, len(byte_level().strings) + PADDING)
    assert isinstance(chain, ChainDrafter)
    assert chain.info.vocabulary_fingerprint == byte_level().fingerprint
    tokens = Segmenter(byte_level().spellings).tokens(TEXT.encode())
    chain.feed(tokens[:9])
    assert chain.candidates().ids[0] == tokens[9]


def test_what_is_remembered_of_texts_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long conversations never see the same text again."""
    monkeypatch.setattr("edge_client.drafters.vocabulary.translated.CACHED_TEXTS", 16)
    drafter, _, target = make(Way.TRANSLATED)
    tokens = Segmenter(target.spellings).tokens(
        b"a restaurant of our own, or a reservation for tomorrow at seven o'clock"
    )
    for token in tokens:
        drafter.feed([token])
        drafter.candidates()
    assert isinstance(drafter, TranslatedDrafter)
    told = drafter._first_token.cache_info()
    assert told.misses > told.currsize == 16
    assert drafter._has_longer.cache_info().maxsize == 16
    assert drafter._common.drafter_tokens.cache_info().maxsize is not None
