"""The target's vocabulary on its way to the device: whole, checked, cached; hostile ones cost nothing but drafts."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from outrider.v1 import verifier_pb2 as pb

from cloud_verifier.serving.open_request import VOCABULARY_PIECE_BYTES, vocabulary_pieces
from edge_client.client import EdgeClient
from edge_client.drafters.base import Drafter
from edge_client.errors import SessionError
from edge_client.link.channel import Channel
from edge_client.riding import vocabulary_cache
from edge_client.riding.vocabulary_cache import VocabularyCache, VocabularyError
from edge_client.riding.vocabulary_matching import VocabularyMatching
from speculation.sampling import SamplingParams
from speculation.vocabulary.correspondence import Way
from speculation.vocabulary.vocabulary import Vocabulary
from tests.harness import InProcessVerifier, LetterCodec
from tests.mock_engine import MockEngine
from tests.other_vocabularies import HashDrafter, byte_level, sentencepiece
from tests.service.raw import DEADLINE_S

Pieces = list[pb.GetVocabularyResponse]


class BytesCodec(LetterCodec):
    """A mock with a real vocabulary."""

    vocabulary = byte_level()
    fingerprint = vocabulary.fingerprint


class Wire:
    """A channel on which these pieces come."""

    def __init__(self, pieces: Pieces) -> None:
        self.pieces, self.asked = pieces, 0

    def vocabulary(self, _model: str, collect: Callable[[AsyncIterator[Any]], Any]) -> Any:
        async def stream() -> AsyncIterator[Any]:
            for piece in self.pieces:
                yield piece

        self.asked += 1
        return asyncio.run(collect(stream()))


def told(fingerprint: str = byte_level().fingerprint) -> pb.GetModelInfoResponse:
    return pb.GetModelInfoResponse(model="m", vocabulary_fingerprint=fingerprint, vocabulary_size=500)


def get(pieces: Pieces, folder: Path, info: pb.GetModelInfoResponse | None = None) -> Vocabulary:
    wire: Any = Wire(pieces)
    return VocabularyCache(folder).get(wire, info or told())


# --- over a real socket -------------------------------------------------------------------------------------------


def test_it_arrives_whole_and_is_asked_for_once(tmp_path: Path) -> None:
    with InProcessVerifier(MockEngine(), BytesCodec()) as verifier:
        channel = Channel(verifier.address)
        info = channel.model_info()
        cache = VocabularyCache(tmp_path)
        found = cache.get(channel, info)
        channel.close()
    assert (found.strings, found.special) == (byte_level().strings, byte_level().special)
    again = cache.get(channel, info)  # though nobody is there any more
    assert (again.strings, again.special) == (found.strings, found.special)


def test_a_model_that_is_not_served_has_none() -> None:
    with InProcessVerifier(MockEngine(), BytesCodec()) as verifier:
        channel = Channel(verifier.address)
        with pytest.raises(SessionError, match="not served"):
            channel.vocabulary("another", vocabulary_cache._collect)
        channel.close()


def test_a_verifier_that_has_none_costs_only_the_drafts(tmp_path: Path) -> None:
    notices: list[str] = []
    drafter: Drafter = HashDrafter(sentencepiece())
    codec: Any = LetterCodec()
    codec.vocabulary = None
    with InProcessVerifier(MockEngine(), codec) as verifier:
        channel = Channel(verifier.address)
        matching = VocabularyMatching(channel, drafter, notices, VocabularyCache(tmp_path))
        found = matching.find(channel.model_info())
        channel.close()
        assert matching.ended(30.0)
    assert (found.way, found.speaking) == (Way.NONE, None)
    assert "cannot be had" in found.sentence


# --- pieces -------------------------------------------------------------------------------------------------------


@given(
    strings=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=30),
    special=st.sets(st.integers(0, 29)),
    added=st.sets(st.integers(0, 29)),
)
def test_any_vocabulary_survives_its_pieces(
    tmp_path_factory: pytest.TempPathFactory, strings: list[str], special: set[int], added: set[int]
) -> None:
    ids = range(len(strings))
    vocabulary = Vocabulary(
        tuple(strings), frozenset(special.intersection(ids)), added=frozenset(added.intersection(ids)) - special
    )
    found = get(list(vocabulary_pieces(vocabulary)), tmp_path_factory.mktemp("cache"), told(vocabulary.fingerprint))
    assert found == vocabulary


def test_pieces_are_well_below_the_limit_of_a_message(tmp_path: Path) -> None:
    large = Vocabulary(tuple(f"token {i} {'x' * (i % 60)}" for i in range(20_000)))
    pieces = list(vocabulary_pieces(large))
    assert len(pieces) > 2
    assert max(piece.ByteSize() for piece in pieces) < 1.1 * VOCABULARY_PIECE_BYTES
    assert get(pieces, tmp_path, told(large.fingerprint)).strings == large.strings


@pytest.mark.parametrize(
    ("pieces", "sentence"),
    [
        ([], "fingerprint"),
        ([pb.GetVocabularyResponse(tokens=[b"a", b"b"])], "fingerprint"),
        ([pb.GetVocabularyResponse(start=5, tokens=[b"a"])], "begins at token 5 instead of 0"),
        ([pb.GetVocabularyResponse(tokens=[b"a"]), pb.GetVocabularyResponse(tokens=[b"a"])], "instead of 1"),
    ],
)
def test_what_is_wrong_is_refused_and_not_kept(pieces: Pieces, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=sentence):
        get(pieces, tmp_path)
    assert not list(tmp_path.iterdir())


def test_too_much_is_refused_before_it_has_all_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary_cache, "MOST_TOKENS", 100)
    many = [pb.GetVocabularyResponse(start=60 * i, tokens=[b"x"] * 60) for i in range(3)]
    with pytest.raises(VocabularyError, match="more than 100 tokens"):
        get(many, tmp_path)
    monkeypatch.setattr(vocabulary_cache, "MOST_BYTES", 1000)
    with pytest.raises(VocabularyError, match="more than"):
        get([pb.GetVocabularyResponse(tokens=[b"x" * 2000])], tmp_path)


def test_special_ids_that_are_none_are_ignored(tmp_path: Path) -> None:
    vocabulary = Vocabulary(("a", "b"))
    pieces = [pb.GetVocabularyResponse(tokens=[b"a", b"b"], special_ids=[1, 2, 99])]
    assert get(pieces, tmp_path, told(vocabulary.fingerprint)).special == {1}


# --- the cache ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b"", b"\xff\xff", pb.GetVocabularyResponse(tokens=[b"a"]).SerializeToString()])
def test_a_damaged_file_is_asked_for_again(damage: bytes, tmp_path: Path) -> None:
    wire: Any = Wire(list(vocabulary_pieces(byte_level())))
    cache = VocabularyCache(tmp_path)
    cache.get(wire, told())
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage)
    assert cache.get(wire, told()).strings == byte_level().strings
    assert wire.asked == 2
    cache.get(wire, told())
    assert wire.asked == 2


def test_a_fingerprint_that_is_a_path_names_no_file(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError):
        get(list(vocabulary_pieces(byte_level())), tmp_path / "cache", told("sha256:../../evil"))
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    found = get(list(vocabulary_pieces(byte_level())), tmp_path / "file" / "cache")
    assert found.strings == byte_level().strings


# --- a client -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", [0, 1])
def test_a_client_may_be_closed_while_it_matches(answers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_: tmp_path)
    with InProcessVerifier(MockEngine(), BytesCodec()) as verifier:
        client = EdgeClient(verifier.address, HashDrafter(sentencepiece()))
        words = client.stream([5, 6, 7], SamplingParams(temperature=0.0, max_tokens=300), seed=9)
        first = next(words)
        for _ in range(answers):
            for chunk in words:
                first = chunk
        client.close()
        assert first.token_ids or first.output is not None
        assert len(client.notices) <= 1


# --- bounds -------------------------------------------------------------------------------------------------------


def test_what_is_kept_of_many_targets_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary_cache, "MOST_FILES", 3)
    monkeypatch.setattr("edge_client.riding.vocabulary_matching.KEPT_MATCHES", 2)
    wire: Any = Wire([])
    matching = VocabularyMatching(wire, HashDrafter(sentencepiece()), [], VocabularyCache(tmp_path))
    for number in range(5):
        target = Vocabulary((*byte_level().strings, f"target{number}"), byte_level().special)
        wire.pieces = list(vocabulary_pieces(target))
        ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        matching.ask(told(target.fingerprint), ready.put)
        assert ready.get(timeout=DEADLINE_S).speaking is not None
        assert (tmp_path / (target.fingerprint.removeprefix("sha256:") + vocabulary_cache._SUFFIX)).is_file()
    assert matching.ended(30.0)
    assert len(list(tmp_path.iterdir())) == 3
    assert len(matching._known) == 2
