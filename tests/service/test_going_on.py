"""An answer that was cancelled, or had ended, and goes on: its text is that of its tokens, told once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from outrider.v1 import verifier_pb2 as pb

from cloud_verifier.scheduling.session import Session
from edge_client.client import EdgeClient, SamplingParams
from edge_client.types import RequestOutput, StreamChunk
from outrider_models.model_text import SpelledText
from tests.harness import InProcessVerifier, LetterCodec
from tests.mock_engine import VOCABULARY_SIZE, answer
from tests.service.engines import GatedEngine
from tests.service.raw import PROMPT, SEED, Stream, opening

COUNT = 10
WORDS = tuple(answer(PROMPT, SEED, COUNT))
LETTERS = LetterCodec().text(WORDS)
HALVES = [b"\xc3" if token % 2 else b"\xa9" for token in range(VOCABULARY_SIZE)]  # of "é"
# They begin like the answer and then differ: text is held back at every length.
STOPS = tuple(LETTERS[at : at + 3] + "#" for at in range(0, COUNT, 3))


class HalvesCodec(LetterCodec):
    """Every token is half a character, and many halves do not fit."""

    def stream(self, before: Sequence[int] = ()) -> SpelledText:  # type: ignore[override]
        return SpelledText(HALVES, spaced=False)


TEXTS: dict[type[LetterCodec], str] = {
    LetterCodec: LETTERS,
    HalvesCodec: b"".join(HALVES[token] for token in WORDS).decode("utf-8", "replace"),
}


def cancelled_after(client: EdgeClient, engine: GatedEngine, tokens: int, params: SamplingParams) -> RequestOutput:
    """Closing the iterator would leave nobody to hear of the end."""
    engine.allow(tokens)
    cancel: Callable[[], None]

    def start(put: Callable[[StreamChunk | BaseException], None]) -> Callable[[], None]:
        nonlocal cancel
        cancel = client._answers.start(PROMPT, params, SEED, put)
        return cancel

    count = 0
    for chunk in client._stream(start):
        count += len(chunk.token_ids)
        if count == tokens and chunk.token_ids:
            cancel()
        if chunk.output is not None:
            engine.allow(1000)  # also for the step that was under way; its token comes too late
            return chunk.output
    raise AssertionError("it ended without an output")


@pytest.mark.parametrize("tokens", range(1, COUNT))
@pytest.mark.parametrize(("codec", "stop"), [(HalvesCodec, ()), (LetterCodec, STOPS)])
def test_a_cancelled_answer_goes_on_without_telling_anything_twice(
    codec: type[LetterCodec], stop: tuple[str, ...], tokens: int
) -> None:
    params = SamplingParams(max_tokens=COUNT, stop=stop)
    engine = GatedEngine()
    with InProcessVerifier(engine, codec()) as verifier, EdgeClient(verifier.address) as client:
        first = cancelled_after(client, engine, tokens, params)
        assert (first.finish_reason, first.token_ids) == ("abort", WORDS[:tokens])
        chunks = list(client.stream(PROMPT, params, continues=first))
        whole, alone = chunks[-1].output, client.generate(PROMPT, params, seed=SEED)
    assert whole is not None
    assert (whole.token_ids, whole.text) == (alone.token_ids, alone.text) == (WORDS, TEXTS[codec])
    assert first.text + "".join(chunk.text for chunk in chunks) == alone.text


@pytest.mark.parametrize(("codec", "stop"), [(HalvesCodec, ()), (LetterCodec, STOPS)])
def test_an_answer_that_had_ended_goes_on(codec: type[LetterCodec], stop: tuple[str, ...]) -> None:
    engine = GatedEngine()
    engine.allow(1000)
    with InProcessVerifier(engine, codec()) as verifier, EdgeClient(verifier.address) as client:
        longest = SamplingParams(max_tokens=COUNT, stop=stop)
        alone = client.generate(PROMPT, longest, seed=SEED)
        for tokens in range(1, COUNT + 1):
            first = client.generate(PROMPT, replace(longest, max_tokens=tokens), seed=SEED)
            assert first.finish_reason == "length"
            chunks = list(client.stream(PROMPT, longest, continues=first))
            whole = chunks[-1].output
            assert whole is not None
            assert (whole.token_ids, whole.text) == (alone.token_ids, alone.text)
            # The half of a character was told as U+FFFD, which cannot be taken back; the rest of it follows.
            known = len(os.path.commonprefix([first.text, alone.text]))  # noqa: RUF071 - of texts
            assert known >= len(first.text) - (codec is HalvesCodec)
            assert "".join(chunk.text for chunk in chunks) == alone.text[known:]
            assert all(chunk.text == "".join(chunk.texts) for chunk in chunks if chunk.texts)


def test_a_verifier_that_tells_what_it_held_back_is_not_heard_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """As verifiers did once when an answer was cancelled."""
    from cloud_verifier.serving import stream

    finished = stream._finished

    def telling(session: Session) -> pb.Finished:
        message = finished(session)
        message.text = session.text.rest()
        return message

    monkeypatch.setattr(stream, "_finished", telling)
    params, engine = SamplingParams(max_tokens=COUNT, stop=STOPS), GatedEngine()
    with InProcessVerifier(engine) as verifier, EdgeClient(verifier.address) as client:
        first = cancelled_after(client, engine, 2, params)
        assert (first.text, first.held_text) == (LETTERS[:2], LETTERS[:2])
        assert client.generate(PROMPT, params, continues=first).text == LETTERS


def test_a_special_token_ends_an_answer_by_its_name() -> None:
    """It is no text, so no stop string is ever found in it; ignore_eos does not speak of what the request names."""
    with InProcessVerifier(GatedEngine(eos_every=6)) as verifier:
        verifier.engine.allow(1000)  # type: ignore[union-attr]
        for stop, ends in ((["<end>"], True), (["<begin>"], False), (["x<end>"], False)):
            sampling = pb.SamplingParams(max_tokens=60, ignore_eos=True, stop=stop)
            with Stream(verifier.address, opening(sampling=sampling, want_text=True)) as stream:
                stream.opened()
                rest = stream.rest()
            assert (rest.finished.reason == pb.FINISH_REASON_STOP) == ends
            assert (rest.tokens[-1] == 1 and len(rest.tokens) < 60) == ends
