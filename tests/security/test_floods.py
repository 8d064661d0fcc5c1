"""Devices that read nothing, or send more than anybody could use: each hurts only itself."""

from __future__ import annotations

import gc
import weakref

import pytest
from outrider.v1 import verifier_pb2 as pb

from cloud_verifier.scheduling import session as session_module
from cloud_verifier.scheduling.scheduler import SchedulerSettings
from cloud_verifier.scheduling.session import Session
from cloud_verifier.serving.service import ServiceSettings
from cloud_verifier.serving.stream import StreamSettings
from speculation.pace.base import PATIENCE_UNLIMITED_MS
from tests.harness import InProcessVerifier, LetterCodec
from tests.mock_engine import MockEngine, answer
from tests.service.engines import WordyEngine
from tests.service.raw import PROMPT, SEED, Bystander, Stream, opening, until

START = len(PROMPT)
SMALL_WINDOW = [("grpc.http2.lookahead_bytes", 1 << 14), ("grpc.http2.bdp_probe", 0)]
WORDS = answer(PROMPT, SEED, 12)
WAITING = opening(sampling=pb.SamplingParams(max_tokens=12), patience_ms=PATIENCE_UNLIMITED_MS)


def only(verifier: InProcessVerifier) -> Session:
    (session,) = verifier.service._sessions.values()
    return session


def test_a_stream_that_nobody_reads_is_ended_and_its_session_can_be_resumed() -> None:
    count = 8_000
    settings = ServiceSettings(stream=StreamSettings(write_timeout_s=2.0))
    long = opening(sampling=pb.SamplingParams(max_tokens=count, logprobs=20))
    with (
        InProcessVerifier(
            WordyEngine(context_limit=count + 10), service=settings, scheduler=SchedulerSettings(unread_tokens=100)
        ) as verifier,
        Stream(verifier.address, long, SMALL_WINDOW) as slow,
    ):
        session_id = slow.opened().session_id
        session = only(verifier)
        until(lambda: not session.attached, "the stream is given up")
        assert session.line.length - session.sent <= 100
        words, ended = slow.until_the_end()
        assert ended[:2] == ("ABORTED", "SLOW_READER")
        assert 0 < len(words) < count
        resume = opening(resume=pb.Resume(session_id=session_id, known_length=START + len(words)))
        with Stream(verifier.address, resume) as again:
            again.opened()
            assert len(words) + len(again.rest().tokens) == count


def test_a_session_that_nobody_reads_does_not_outlive_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the call itself is there until its connection ends: its end waits behind what the device does not read."""
    monkeypatch.setattr("cloud_verifier.serving.stream_reader.CALLS_END_WITHIN_S", 0.3)
    settings = ServiceSettings(lease_s=0.1, stream=StreamSettings(write_timeout_s=0.3))
    long = opening(sampling=pb.SamplingParams(max_tokens=8_000, logprobs=20))
    with (
        InProcessVerifier(WordyEngine(context_limit=8_010), service=settings) as verifier,
        Stream(verifier.address, long, SMALL_WINDOW) as slow,
    ):
        slow.opened()
        session = weakref.ref(only(verifier))
        until(lambda: verifier.service.sessions == 0, "it is forgotten")
        until(lambda: gc.collect() >= 0 and session() is None, "nothing holds it")


def test_messages_are_taken_at_a_bounded_rate_and_none_is_lost() -> None:
    settings = ServiceSettings(stream=StreamSettings(messages_per_s=2, burst_messages=4))
    with InProcessVerifier(MockEngine(), service=settings) as verifier:
        bystander = Bystander(verifier.address)
        with Stream(verifier.address, WAITING) as flood:
            flood.opened()
            for number in range(8):
                flood.send(ping=pb.Ping(sent_at_us=number))
            flood.half_close()
            rest = flood.rest()
        assert rest.tokens == WORDS
        assert rest.pongs == list(range(8))
        assert rest.finished.statistics.slowed_messages > 0
        bystander.finish()


def test_drafts_beyond_the_lookahead_are_dropped_and_counted() -> None:
    wrong = [2 + (token + 1) % 60 for token in WORDS] * 2
    with InProcessVerifier(MockEngine(), max_lookahead=24) as verifier:
        bystander = Bystander(verifier.address)
        with Stream(verifier.address, opening(sampling=WAITING.sampling)) as flood:
            flood.opened()
            for number in range(400):
                flood.draft(START + number % 20, wrong, START)
            flood.half_close()
            rest = flood.rest()
        assert rest.tokens == WORDS
        statistics = rest.finished.statistics
        assert statistics.drafted_tokens <= 400 * len(wrong)
        assert statistics.dropped_tokens >= statistics.drafted_tokens - statistics.verified_tokens - 24
        bystander.finish()


def test_text_that_went_out_long_ago_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "KEPT_TOKENS", 8)
    count = 400
    asked = opening(
        sampling=pb.SamplingParams(max_tokens=count, logprobs=0), want_text=True, patience_ms=PATIENCE_UNLIMITED_MS
    )
    right = answer(PROMPT, SEED, count)
    with InProcessVerifier(MockEngine()) as verifier, Stream(verifier.address, asked) as stream:
        session_id = stream.opened().session_id
        said = stream.tokens(1)
        while len(said) < 100:
            known = START + len(said)
            stream.draft(known, right[len(said) : len(said) + 10], known)
            said += stream.tokens(1)
        session = only(verifier)
        assert not any(session.text.pieces[: len(said) - 8 - 64])
        assert session.oldest > START

        def resuming(known: int) -> pb.Open:
            return opening(resume=pb.Resume(session_id=session_id, known_length=known))

        with Stream(verifier.address, resuming(START)) as late:
            assert late.refusal()[:2] == ("OUT_OF_RANGE", "KNOWN_LENGTH")
        with Stream(verifier.address, resuming(START + len(said))) as again:
            again.opened()
            again.half_close()
            rest = again.rest()
        assert [*said, *rest.tokens] == right
        assert rest.text == LetterCodec().text(right[len(said) :])
