"""Quotas and the queue over real sockets: whoever is refused is told when to come again, and devices do as told."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from outrider.v1 import verifier_pb2 as pb

from cloud_verifier.security.authentication import Authentication
from cloud_verifier.security.keys import KeyFile, KeyStore
from cloud_verifier.serving.admission import AdmissionSettings
from cloud_verifier.serving.service import ServiceSettings
from edge_client.client import EdgeClient, SamplingParams
from edge_client.errors import SessionError
from edge_client.link.channel import LinkSettings
from edge_client.link.security import Security
from speculation.pace.base import PATIENCE_UNLIMITED_MS
from tests.harness import InProcessVerifier
from tests.mock_engine import MockEngine, answer
from tests.service.links import Road
from tests.service.raw import DEADLINE_S, PROMPT, SEED, Stream, opening, until

PARAMS = SamplingParams(max_tokens=12)
WORDS = tuple(answer(PROMPT, SEED, 12))
START = len(PROMPT)
WAITING = opening(sampling=pb.SamplingParams(max_tokens=12), patience_ms=PATIENCE_UNLIMITED_MS)
PATIENT = ServiceSettings(away_s=DEADLINE_S)  # with devices that are silent while others wait
CALM = LinkSettings(stalled_s=0.2, place_timeout_s=DEADLINE_S)


def test_a_device_waits_in_the_queue_and_gets_its_place() -> None:
    """Longer than a stream may be silent, and longer than it may take to connect."""
    calm = LinkSettings(connect_timeout_s=0.4, stalled_s=0.2, place_timeout_s=DEADLINE_S)
    with (
        InProcessVerifier(MockEngine(max_sequences=1), service=PATIENT) as verifier,
        Stream(verifier.address, WAITING) as first,
        EdgeClient(verifier.address, link=calm) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        first.opened()
        second = pool.submit(client.generate, PROMPT, PARAMS, seed=SEED)
        until(lambda: verifier.service.waiting == 1, "the second waits")
        with pytest.raises(TimeoutError):
            second.result(timeout=0.6)
        first.half_close()
        first.rest()
        output = second.result(DEADLINE_S)
        assert output.token_ids == WORDS
        assert output.metrics.reconnects == 0


def test_a_device_that_leaves_the_queue_leaves_it_at_once() -> None:
    with (
        InProcessVerifier(MockEngine(max_sequences=1), service=PATIENT) as verifier,
        Stream(verifier.address, WAITING) as first,
    ):
        first.opened()
        second = Stream(verifier.address, WAITING)
        until(lambda: verifier.service.waiting == 1, "the second waits")
        second.cut()
        until(lambda: verifier.service.waiting == 0, "it has left")
        with EdgeClient(verifier.address, link=CALM) as client, ThreadPoolExecutor(1) as pool:
            asked = pool.submit(client.generate, PROMPT, PARAMS, seed=SEED)
            until(lambda: verifier.service.waiting == 1, "the client waits")
            client.close()
            with pytest.raises(SessionError, match="closed"):
                asked.result(DEADLINE_S)
        until(lambda: verifier.service.waiting == 0, "it has left")
        first.half_close()
        assert first.rest().tokens == list(WORDS)


def test_a_device_that_waited_in_vain_says_so() -> None:
    impatient = LinkSettings(place_timeout_s=0.3)
    with (
        InProcessVerifier(MockEngine(max_sequences=1), service=PATIENT) as verifier,
        Stream(verifier.address, WAITING) as first,
        EdgeClient(verifier.address, link=impatient) as client,
    ):
        first.opened()
        with pytest.raises(SessionError, match="the verifier is full") as caught:
            client.generate(PROMPT, PARAMS, seed=SEED)
        assert (caught.value.code, caught.value.retry_after_s) == ("RESOURCE_EXHAUSTED", 1.0)


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.toml")


def verifier_with(file: KeyFile, max_queue: int = 64) -> InProcessVerifier:
    return InProcessVerifier(
        MockEngine(),
        service=ServiceSettings(away_s=DEADLINE_S, admission=AdmissionSettings(max_queue)),
        authentication=Authentication(KeyStore(file.path)),
    )


def test_a_principal_with_all_its_sessions_waits_as_told(file: KeyFile) -> None:
    ann, ben = Security(api_key=file.add("ann", {"max_sessions": 1})), Security(api_key=file.add("ben", {}))
    with verifier_with(file) as verifier, Stream(verifier.address, WAITING, api_key=ann.api_key) as first:
        first.opened()
        with Stream(verifier.address, WAITING, api_key=ann.api_key) as second:
            assert second.refusal()[:2] == ("RESOURCE_EXHAUSTED", "PRINCIPAL_SESSIONS")
        with EdgeClient(verifier.address, security=ben) as client:
            assert client.generate(PROMPT, PARAMS, seed=SEED).token_ids == WORDS
        with EdgeClient(verifier.address, security=ann) as client, ThreadPoolExecutor(1) as pool:
            asked = pool.submit(client.generate, PROMPT, PARAMS, seed=SEED)
            with pytest.raises(TimeoutError):
                asked.result(timeout=0.2)
            first.half_close()
            first.rest()
            assert asked.result(DEADLINE_S).token_ids == WORDS


def test_tokens_of_a_minute_are_counted_and_a_wait_too_long_is_not_begun(file: KeyFile) -> None:
    ann = Security(api_key=file.add("ann", {"tokens_per_minute": 20}))
    brief = LinkSettings(place_timeout_s=5.0)
    with verifier_with(file) as verifier, EdgeClient(verifier.address, security=ann, link=brief) as client:
        client.generate(PROMPT, PARAMS, seed=SEED)
        client.generate(PROMPT, PARAMS, seed=SEED)  # 30 of 20: this one was still welcome
        until(lambda: verifier.service.sessions == 0, "both are counted")
        with pytest.raises(SessionError, match="20 tokens per minute") as caught:
            client.generate(PROMPT, PARAMS, seed=SEED)
        assert caught.value.reason == "PRINCIPAL_TOKENS"
        assert caught.value.retry_after_s is not None
        assert 20 < caught.value.retry_after_s <= 30


def test_a_prompt_longer_than_a_key_may_send_is_refused_and_takes_no_place(file: KeyFile) -> None:
    key = file.add("ann", {"max_prompt_tokens": 3, "max_sessions": 1})
    with verifier_with(file) as verifier:
        for prompt_ids in ([5, 6, 7, 8], [5] * 100):
            with Stream(verifier.address, opening(prompt_ids=pb.TokenIds(ids=prompt_ids)), api_key=key) as stream:
                assert stream.refusal()[:2] == ("OUT_OF_RANGE", "PROMPT_TOO_LONG")
        with Stream(verifier.address, WAITING, api_key=key) as stream:
            stream.opened()


def test_a_session_whose_device_is_away_gives_way_and_goes_on_later() -> None:
    """Its device opens it again from its words, for the same words."""
    no_queue = ServiceSettings(away_s=0.0, admission=AdmissionSettings(max_queue=0))
    with (
        InProcessVerifier(MockEngine(max_sequences=1), service=no_queue) as verifier,
        Road(verifier.address) as road,
        EdgeClient(road.address, link=LinkSettings(place_timeout_s=DEADLINE_S)) as client,
    ):
        request = client.stream(PROMPT, SamplingParams(max_tokens=3000), seed=SEED)
        said = list(next(request).token_ids)
        road.refuse(True)
        road.cut()
        until(lambda: not any(s.attached for s in verifier.service._sessions.values()), "the cut is noticed")
        with EdgeClient(verifier.address) as other:
            assert other.generate(PROMPT, PARAMS, seed=SEED).token_ids == WORDS
        road.refuse(False)
        for chunk in request:
            said += chunk.token_ids
        assert said == answer(PROMPT, SEED, 3000)


def test_a_session_whose_device_went_away_makes_room_for_who_waits() -> None:
    with (
        InProcessVerifier(MockEngine(max_sequences=1), service=ServiceSettings(away_s=0.2)) as verifier,
        Stream(verifier.address, WAITING) as first,
    ):
        first.opened()
        first.tokens(1)
        with Stream(verifier.address, WAITING) as second:
            until(lambda: verifier.service.waiting == 1, "the second waits")
            first.cut()
            second.half_close()
            second.opened()
            assert second.rest().tokens == list(WORDS)


def test_devices_that_are_there_but_silent_make_room_for_who_waits() -> None:
    """Not before somebody waits, and not those that draft."""
    with (
        InProcessVerifier(MockEngine(max_sequences=2), service=ServiceSettings(away_s=0.3)) as verifier,
        Stream(verifier.address, WAITING) as silent,
        Stream(verifier.address, WAITING) as drafting,
    ):
        for stream in (silent, drafting):
            stream.opened()
        said, told = silent.tokens(1), drafting.tokens(1)
        sessions = list(verifier.service._sessions.values())
        until(lambda: all(s.silent_s(100, time.monotonic()) > 1.0 for s in sessions), "both are silent for long")
        assert not any(session.over for session in sessions), "but nobody waits"
        drafting.draft(START + 1, WORDS[1:4], START + 1)
        told += drafting.tokens(4)
        with Stream(verifier.address, WAITING) as newcomer:
            newcomer.opened()
            newcomer.half_close()
            assert newcomer.rest().tokens == list(WORDS)
        refusal = silent.refusal()
        assert refusal[:2] == ("ABORTED", "SILENT")
        assert "continue_from" in refusal.sentence
        drafting.half_close()
        assert told + drafting.rest().tokens == list(WORDS)
        going_on = opening(sampling=pb.SamplingParams(max_tokens=12), continue_from=said)
        with Stream(verifier.address, going_on) as again:
            again.opened()
            assert said + again.rest().tokens == list(WORDS)


def test_a_device_that_falls_silent_while_another_waits_makes_room() -> None:
    with (
        InProcessVerifier(MockEngine(max_sequences=1), service=ServiceSettings(away_s=0.5)) as verifier,
        Stream(verifier.address, WAITING) as first,
    ):
        first.opened()
        first.tokens(1)
        with Stream(verifier.address, WAITING) as second:
            second.half_close()
            second.opened()
            assert second.rest().tokens == list(WORDS)
        assert first.refusal().reason == "SILENT"
