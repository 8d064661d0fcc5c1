"""Drafters that are slow, hang, come back late, or cannot be waited for: the verifier's words reach the caller."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from cloud_verifier.serving.service import ServiceSettings
from edge_client import client
from edge_client.client import EdgeClient
from edge_client.drafters.base import Candidates
from edge_client.errors import SessionError
from edge_client.link.channel import LinkSettings
from edge_client.riding import answer as answer_module
from edge_client.riding import answer_start
from edge_client.riding.answer import AnswerRun
from edge_client.riding.vocabulary_cache import VocabularyCache
from edge_client.types import OfflineAnswers, RideSettings, StreamChunk
from speculation.pace.base import Action, Pace, Synchronous, View
from speculation.pace.observed import Diary
from speculation.sampling import SamplingParams
from tests.harness import InProcessVerifier, LetterCodec, MockDrafter, queue_of
from tests.mock_engine import MockEngine, answer
from tests.service.engines import GatedEngine
from tests.service.links import Road, ScriptedVerifier, listening
from tests.service.raw import PROMPT, SEED, until
from tests.speaking import SpeakingDrafter

COUNT = 40
PARAMS = SamplingParams(max_tokens=COUNT)
WORDS = answer(PROMPT, SEED, COUNT)


class Gated(MockDrafter):
    """Every call of one kind takes until the gate is opened."""

    def __init__(self, kind: str = "feed") -> None:
        super().__init__(1, SEED, 1.0)
        self.gate, self.within, self._kind = threading.Event(), threading.Event(), kind

    def _wait(self, kind: str) -> None:
        if kind == self._kind:
            self.within.set()
            assert self.gate.wait(60)

    def feed(self, tokens: Sequence[int]) -> None:
        self._wait("feed")
        super().feed(tokens)

    def candidates(self) -> Candidates:
        self._wait("candidates")
        return super().candidates()

    def rollback(self, length: int) -> None:
        if self.length > len(PROMPT):
            self._wait("rollback")
        super().rollback(length)

    def learn(self, log: Sequence[int], prompt_tokens: int) -> None:
        self._wait("learn")


@pytest.fixture
def gated(request: pytest.FixtureRequest) -> Iterator[Gated]:
    drafter = Gated(getattr(request, "param", "feed"))
    yield drafter
    drafter.gate.set()


class Patient(Pace):
    """Has the verifier wait for its guesses for so long."""

    name = "patient"

    def __init__(self, patience_ms: int) -> None:
        self.patience_ms = patience_ms

    def next(self, view: View) -> Action:
        if view.can_draft and view.depth < 4:
            return Action.DRAFT
        return Action.FLUSH if view.unsent else Action.WAIT

    def reset(self) -> None:
        self.patience_ms = 0


@pytest.mark.parametrize("gated", ["feed", "candidates", "rollback", "learn"], indirect=True)
def test_words_do_not_wait_for_a_call_into_the_drafter(gated: Gated) -> None:
    with InProcessVerifier(MockEngine()) as verifier, EdgeClient(verifier.address, gated) as edge:
        output = edge.generate(PROMPT, PARAMS, seed=SEED)
        assert list(output.token_ids) == WORDS
        if gated.within.is_set():  # still: it is not given to the next answer, which does not wait for it either
            assert queue_of(edge).taken
            assert list(edge.generate(PROMPT, PARAMS, seed=SEED).token_ids) == WORDS
        gated.gate.set()
        until(lambda: not queue_of(edge).taken, "the call comes back and the drafter is free")
        until(lambda: edge.generate(PROMPT, PARAMS, seed=SEED).metrics.drafted_tokens > 0, "it drafts again")


@pytest.mark.parametrize("gated", ["feed", "learn"], indirect=True)
def test_the_end_of_an_answer_does_not_wait_for_a_diary(gated: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chat and the page keep one: what a drafter that hangs has yet to do is missing there."""
    monkeypatch.setattr(answer_start, "DIARY_TIMEOUT_S", 1000.0)
    diary = Diary()
    with InProcessVerifier(MockEngine()) as verifier, EdgeClient(verifier.address, gated) as edge:
        output = edge.generate(PROMPT, PARAMS, seed=SEED, ride=RideSettings(diary=diary))
        assert list(output.token_ids) == WORDS
        assert gated.within.is_set()
        gated.gate.set()


def test_close_does_not_wait_for_ever(gated: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CLOSE_TIMEOUT_S", 0.2)
    closed: list[bool] = []
    monkeypatch.setattr(gated, "close", lambda: closed.append(True))
    with InProcessVerifier(MockEngine()) as verifier:
        edge = EdgeClient(verifier.address, gated)
        edge.generate(PROMPT, PARAMS, seed=SEED)
        assert gated.within.wait(10)
        edge.close()
        assert not closed, "what a runtime is at work on is not freed"
        with EdgeClient(verifier.address, MockDrafter(1, SEED, 1.0)) as other:
            monkeypatch.setattr(other._drafter.lease.drafter, "close", lambda: closed.append(True))  # type: ignore[union-attr]
    assert closed


@pytest.mark.parametrize("method", ["close", "vocabulary"])
def test_close_waits_for_no_call_of_any_kind(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CLOSE_TIMEOUT_S", 0.2)
    gate, within = threading.Event(), threading.Event()
    drafter = MockDrafter(1, SEED, 1.0)

    def hang() -> None:
        within.set()
        gate.wait(60)

    monkeypatch.setattr(drafter, method, hang)
    closed: list[bool] = []
    if method == "vocabulary":  # which is asked for on a thread of its own
        drafter.info = replace(drafter.info, vocabulary_fingerprint="another")
        monkeypatch.setattr(drafter, "close", lambda: closed.append(True))
        monkeypatch.setattr(VocabularyCache, "get", lambda *_: LetterCodec.vocabulary)
    with InProcessVerifier(MockEngine()) as verifier, EdgeClient(verifier.address, drafter) as edge:
        assert list(edge.generate(PROMPT, PARAMS, seed=SEED).token_ids) == WORDS
        if method == "vocabulary":
            assert within.wait(10)
    assert within.is_set()
    assert not closed, "what a thread reads is not freed"
    gate.set()


def test_an_answer_starts_without_a_call_into_the_drafter(monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts on its caller's thread, which may be an event loop."""
    drafter, gate = SpeakingDrafter(SEED), threading.Event()
    with InProcessVerifier(MockEngine()) as verifier, EdgeClient(verifier.address, drafter) as edge:
        monkeypatch.setattr(drafter, "speaker", lambda: gate.wait(60))
        assert list(edge.generate(PROMPT, PARAMS, seed=SEED).token_ids) == WORDS
        assert not gate.is_set()
        gate.set()


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError("told to fail")])
@pytest.mark.parametrize("method", ["adopt_vocabulary", "feed", "candidates", "learn"])
def test_a_verifier_does_not_wait_for_a_drafter_that_raised_anything(
    method: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library may call sys.exit, and a panic in Rust is no Exception of Python's either."""
    drafter = MockDrafter(1, SEED, 1.0)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(drafter, method, fail)
    with InProcessVerifier(MockEngine()) as verifier:
        with EdgeClient(verifier.address, drafter, pace=lambda: Synchronous(4)) as edge:
            output = edge.generate(PROMPT, PARAMS, seed=SEED)
            assert list(output.token_ids) == WORDS
            until(lambda: not queue_of(edge).taken, "the drafter is free")
            notices = edge.generate(PROMPT, PARAMS, seed=SEED).metrics.notices
        assert any(type(error).__name__ in notice for notice in notices)


class Broken(Synchronous):
    """A pace that fails after the first word."""

    def next(self, view: View) -> Action:
        if view.known_length > len(PROMPT):
            raise SystemExit("told to fail")
        return super().next(view)


@pytest.mark.parametrize("trouble", ["ended", "hangs"])
@pytest.mark.parametrize("lease_s", [0.01, 60.0], ids=["opened again", "resumed"])
def test_a_verifier_met_after_the_loop_has_given_up_does_not_wait(
    trouble: str, lease_s: float, gated: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it should not was said while there was no stream, or to the verifier before."""
    monkeypatch.setattr(answer_module, "CALL_DEADLINE_S", 0.3)
    if trouble == "ended":
        gated.gate.set()
    pace = Broken(4) if trouble == "ended" else Synchronous(4)
    engine, service = GatedEngine(), ServiceSettings(lease_s=lease_s)
    ends: list[object] = []
    with (
        InProcessVerifier(engine, service=service) as verifier,
        Road(verifier.address) as road,
        EdgeClient(road.address, gated, pace=lambda: pace) as edge,
    ):
        run: AnswerRun = edge._answers.start(PROMPT, PARAMS, SEED, ends.append).__self__  # type: ignore[attr-defined]
        until(lambda: run.loop is not None and run.loop._opened is not None, "it is opened")
        road.refuse(True)
        road.cut()
        engine.allow(1000)
        if trouble == "hangs":
            until(lambda: run._drafter_hangs, "the drafter is given up")
        road.refuse(False)
        until(lambda: any(isinstance(end, StreamChunk) and end.output for end in ends), "the answer is complete")
        assert run._tokens == WORDS
        gated.gate.set()
    assert run.ride.notices


@pytest.mark.parametrize("patience_ms", [100, 60_000])
def test_a_verifier_does_not_wait_for_a_drafter_that_hangs(
    gated: Gated, patience_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told after as long as it was to wait for once, or when the call is given up, whichever comes first."""
    monkeypatch.setattr(answer_module, "CALL_DEADLINE_S", 0.3 if patience_ms > 1000 else 60.0)
    pace = Patient(patience_ms)
    with InProcessVerifier(MockEngine()) as verifier, EdgeClient(verifier.address, gated, pace=lambda: pace) as edge:
        output = edge.generate(PROMPT, PARAMS, seed=SEED)
        assert list(output.token_ids) == WORDS
        assert any("has not answered" in notice for notice in output.metrics.notices) == (patience_ms > 1000)
        gated.gate.set()


def test_a_verifier_waits_again_once_the_drafter_is_back(gated: Gated) -> None:
    pace = Patient(200)
    with InProcessVerifier(MockEngine()) as verifier, EdgeClient(verifier.address, gated, pace=lambda: pace) as edge:
        drafted: list[bool] = []
        for chunk in edge.stream(PROMPT, SamplingParams(max_tokens=400), seed=SEED):
            drafted += chunk.drafted
            gated.gate.set()  # after the first words
    assert sum(drafted) > 100


@pytest.mark.parametrize("name", ["outrider-ride", "outrider-draft"])
def test_a_thread_that_cannot_be_started_leaks_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        start(thread)

    drafter, engine = MockDrafter(1, SEED, 1.0), GatedEngine(max_sequences=3, context_limit=20_000)

    def given_back() -> bool:
        engine.allow(1)  # so slowly that no session ends by itself; but a step under way does, and the next is opened
        return not (edge._channel._links or verifier.service.sessions or queue_of(edge).taken)

    with InProcessVerifier(engine) as verifier, EdgeClient(verifier.address, drafter) as edge:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            for _ in range(3):
                with pytest.raises(RuntimeError, match="can't start"):
                    edge.generate(PROMPT, SamplingParams(max_tokens=10_000), seed=SEED)
        until(given_back, "everything is given back")
        engine.allow(100_000)
        assert list(edge.generate(PROMPT, PARAMS, seed=SEED).token_ids) == WORDS
        until(lambda: edge.generate(PROMPT, PARAMS, seed=SEED).metrics.drafted_tokens > 0, "the drafter drafts")


def test_nothing_is_opened_for_an_answer_that_is_refused_at_once() -> None:
    """Nobody is there to be asked whether the device may answer alone."""
    ask = RideSettings(offline_answers=OfflineAnswers.ASK)
    with InProcessVerifier(MockEngine()) as verifier, EdgeClient(verifier.address, SpeakingDrafter(3)) as edge:
        with pytest.raises(ValueError, match="somebody to ask"):
            edge.generate("hello", SamplingParams(max_tokens=4000), ride=ask)
        assert not edge._channel._links
        assert not queue_of(edge).taken


def test_a_cancel_while_the_session_is_opened_frees_the_drafter_and_opens_nothing_again() -> None:
    link = LinkSettings(stalled_s=0.5)
    with (
        ScriptedVerifier(listening) as verifier,
        EdgeClient(verifier.address, MockDrafter(1, 1, 1.0), link=link) as edge,
    ):
        ends: list[object] = []
        cancel = edge._answers.start(PROMPT, PARAMS, SEED, ends.append)
        until(lambda: len(verifier.opens) == 1, "the verifier has the stream")
        cancel()
        until(lambda: not queue_of(edge).taken, "the drafter is free at once")
        assert not any(isinstance(end, SessionError) for end in ends)
        until(lambda: any(isinstance(end, SessionError) for end in ends), "the answer ends")
        assert len(verifier.opens) == 1
