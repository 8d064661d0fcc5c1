"""The client over links that break: the same words, or an error that says why; and nobody waits for ever."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from outrider.v1 import verifier_pb2 as pb

from cloud_verifier.serving.address import Address
from edge_client.client import AsyncEdgeClient, EdgeClient, RequestOutput, SamplingParams
from edge_client.drafters.base import Candidates, Drafter
from edge_client.errors import SessionError
from edge_client.link.channel import LinkSettings
from netlab.link import LinkSettings as RoadSettings
from speculation.pace.adaptive import Adaptive
from speculation.pace.base import Action, BoundedLookahead, Pace, Streaming, Synchronous, View
from tests.harness import InProcessVerifier, LetterCodec, MockDrafter
from tests.mock_engine import MockEngine, answer
from tests.service.engines import GatedEngine
from tests.service.links import Road, ScriptedVerifier, Tarpit, ending, listening, port_of, saying
from tests.service.raw import DEADLINE_S, PROMPT, SEED, until

COUNT = 120
WORDS = tuple(answer(PROMPT, SEED, COUNT))
PARAMS = SamplingParams(max_tokens=COUNT)
PACES: dict[str, Callable[[], Pace]] = {
    "streaming": Streaming,
    "sync": lambda: Synchronous(4),
    "server-led": BoundedLookahead,
    "adaptive": Adaptive,
}
HASTY = LinkSettings(connect_timeout_s=0.5, reconnect_timeout_s=DEADLINE_S, quiet_s=0.05, stalled_s=0.4)


def drafter(accuracy: float) -> MockDrafter:
    return MockDrafter(3, SEED, accuracy)


class Asked:
    """A question asked on a thread: `output` gives the answer or raises; it never hangs the test."""

    def __init__(self, client: EdgeClient, params: SamplingParams = PARAMS) -> None:
        self.tokens: list[int] = []
        self._output: RequestOutput | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._ask, args=(client, params), daemon=True)
        self._thread.start()

    def _ask(self, client: EdgeClient, params: SamplingParams) -> None:
        try:
            for chunk in client.stream(PROMPT, params, seed=SEED):
                self.tokens.extend(chunk.token_ids)
                self._output = chunk.output
        except Exception as error:
            self._error = error

    def output(self) -> RequestOutput:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "the caller waits for ever"
        if self._error is not None:
            raise self._error
        assert self._output is not None
        return self._output

    def refusal(self) -> tuple[str, str, str]:
        with pytest.raises(SessionError) as caught:
            self.output()
        return caught.value.code, caught.value.reason, str(caught.value)


class Replaceable:
    """A verifier that can be stopped and replaced by another one on the same port."""

    def __init__(self, engine: MockEngine) -> None:
        self.current = InProcessVerifier(engine)

    def __enter__(self) -> Replaceable:
        self.current.__enter__()
        self.address = self.current.address
        return self

    def __exit__(self, *_: object) -> None:
        self.current.__exit__(None, None, None)

    def replace(self) -> None:
        self.current.__exit__(None, None, None)
        self.current = InProcessVerifier(MockEngine(), address=Address(port=port_of(self.address))).__enter__()


# -- breaks in mid-answer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["cut", "out of reach", "another verifier"])
@pytest.mark.parametrize(
    ("pace", "accuracy"),
    [("streaming", None), ("sync", 0.8), ("sync", 0.0), ("server-led", 0.8), ("server-led", 0.0), ("adaptive", 0.8)],
)
def test_the_words_survive(pace: str, accuracy: float | None, trouble: str) -> None:
    engine = GatedEngine()  # two steps write 66 tokens at most, so the trouble comes in mid-answer
    guesser = drafter(accuracy) if accuracy is not None else None
    with (
        Replaceable(engine) as verifier,
        Road(verifier.address) as road,
        EdgeClient(road.address, guesser, pace=PACES[pace]) as client,
    ):
        asked = Asked(client)
        engine.allow(2)
        until(lambda: len(asked.tokens) > 0, "the answer begins")
        tried = road.connections
        road.refuse(trouble != "cut")
        road.cut()
        engine.allow(10_000)
        if trouble == "out of reach":
            until(lambda: road.connections + road.refused > tried + 2, "the client knocks")
        elif trouble == "another verifier":
            verifier.replace()
        road.refuse(False)
        output = asked.output()
    assert output.token_ids == tuple(asked.tokens) == WORDS
    assert output.text == LetterCodec().text(WORDS)
    assert output.metrics.reconnects >= 1


class Standstill(Pace):
    """Drafts nothing and lets nothing be written until the test says so."""

    name = "standstill"
    patience_ms = Synchronous.patience_ms

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self._pace = Synchronous(0)

    def next(self, view: View) -> Action:
        self.go_on.wait(DEADLINE_S)
        return self._pace.next(view)


def test_a_verifier_that_stops_in_order_is_followed_by_another() -> None:
    """A stop with grace ends streams by cancelling them, which must not look like a cancellation by the client."""
    pace = Standstill()
    with Replaceable(MockEngine()) as verifier, EdgeClient(verifier.address, pace=lambda: pace) as client:
        asked = Asked(client)
        until(lambda: verifier.current.service.sessions == 1, "the session is open")
        verifier.replace()
        pace.go_on.set()
        output = asked.output()
    assert output.token_ids == WORDS
    assert output.metrics.reconnects >= 1


DEEP: dict[str, Callable[[], Pace]] = {
    "rounds": lambda: Synchronous(40),
    "ahead": lambda: BoundedLookahead(max_depth=40, min_survival=0.0),
}


@pytest.mark.parametrize("pace", DEEP)
def test_an_answer_moves_to_a_verifier_that_takes_a_shorter_line(pace: str) -> None:
    """What the line has beyond that is drawn again once it may be sent; nothing waits, and no word differs."""
    engine, taken = GatedEngine(), 8
    with InProcessVerifier(MockEngine(), max_lookahead=taken) as other:
        with InProcessVerifier(engine, max_lookahead=64) as verifier:
            addresses = f"{verifier.address},{other.address}"
            client = EdgeClient(addresses, drafter(1.0), pace=DEEP[pace], link=HASTY)
            asked = Asked(client)
            engine.allow(1)
            until(lambda: len(asked.tokens) > 0, "the answer begins")
            (session,) = verifier.service._sessions.values()
            until(lambda: len(session.line.guesses) > 2 * taken, "the line is longer than the other verifier takes")
            asyncio.run_coroutine_threadsafe(verifier.draining.drain(0.0), verifier.loop).result(DEADLINE_S)
            engine.allow(1)  # the step that may be under way
        with client:
            output = asked.output()
    assert output.token_ids == WORDS
    assert output.metrics.reconnects >= 1
    assert output.metrics.accepted_tokens > 2 * taken, "guesses count there, too"


@pytest.mark.parametrize("pace", PACES)
def test_a_connection_that_dies_without_a_sign_is_left_for_a_new_one(pace: str) -> None:
    engine = GatedEngine()
    with (
        InProcessVerifier(engine) as verifier,
        Tarpit(verifier.address) as tarpit,
        EdgeClient(tarpit.address, drafter(0.8), pace=PACES[pace], link=HASTY) as client,
    ):
        asked = Asked(client)
        engine.allow(2)
        until(lambda: len(asked.tokens) > 0, "the answer begins")
        tarpit.bury()
        engine.allow(10_000)
        output = asked.output()
        assert tarpit.connections >= 2
    assert output.token_ids == WORDS


def test_a_stall_that_ends_is_survived() -> None:
    engine = GatedEngine()
    with (
        InProcessVerifier(engine) as verifier,
        Road(verifier.address) as road,
        EdgeClient(road.address, drafter(0.8), link=HASTY) as client,
    ):
        asked = Asked(client)
        engine.allow(2)
        until(lambda: len(asked.tokens) > 0, "the answer begins")
        tried = road.connections
        road.pause()
        engine.allow(10_000)
        until(lambda: road.connections > tried, "the client gives the stream up")
        road.resume()
        assert asked.output().token_ids == WORDS


def test_a_far_verifier_is_reached() -> None:
    """Connecting takes two round trips before gRPC counts it as done: 1.4 s here."""
    with (
        InProcessVerifier(MockEngine()) as verifier,
        Road(verifier.address, RoadSettings.of_rtt(700)) as road,
        EdgeClient(road.address) as client,
    ):
        assert Asked(client).output().token_ids == WORDS
        assert road.connections == 1


# -- verifiers by script -----------------------------------------------------------------------------------------------

Status = grpc.StatusCode


def opened(target: str = "mock", prompt_length: int = 3) -> pb.GenerateResponse:
    info = pb.GetModelInfoResponse(target_fingerprint=target, noise_version=1, vocabulary_size=64)
    message = pb.Opened(session_id="s", prompt_length=prompt_length, resumed_at=3, max_lookahead=8, model_info=info)
    return pb.GenerateResponse(opened=message)


def commit(start: int, *tokens: int) -> pb.GenerateResponse:
    return pb.GenerateResponse(commit=pb.Commit(start=start, tokens=tokens, draft_budget=8))


END = pb.GenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_LENGTH))
BEGUN = (opened(), commit(3, 10))
REST = saying(opened(), commit(4, 11), END)
BREAKS = {
    "out of reach": saying(*BEGUN, then=ending(Status.UNAVAILABLE)),
    "cancelled by a proxy": saying(*BEGUN, then=ending(Status.CANCELLED)),
    "torn": saying(*BEGUN, then=ending(Status.INTERNAL)),
    "without a reason": saying(*BEGUN, then=ending(Status.UNKNOWN)),
    "replaced": saying(*BEGUN, then=ending(Status.ABORTED, "REPLACED")),
    "no end": saying(*BEGUN),
}


def ask_script(*scripts: Any, settings: LinkSettings = HASTY) -> tuple[Asked, list[pb.Open]]:
    with ScriptedVerifier(*scripts) as verifier, EdgeClient(verifier.address, link=settings) as client:
        asked = Asked(client)
        asked._thread.join(DEADLINE_S)
        return asked, verifier.opens


@pytest.mark.parametrize("how", BREAKS)
def test_a_broken_stream_is_resumed(how: str) -> None:
    asked, opens = ask_script(BREAKS[how], REST)
    assert asked.output().token_ids == (10, 11)
    assert [open_.resume.known_length for open_ in opens] == [0, 4]
    assert asked.output().metrics.reconnects == 1


@pytest.mark.parametrize(
    "refusals",
    [
        [ending(Status.NOT_FOUND, "SESSION")],
        [ending(Status.OUT_OF_RANGE, "KNOWN_LENGTH")],
        [ending(Status.UNAVAILABLE), ending(Status.CANCELLED), ending(Status.NOT_FOUND, "SESSION")],
        [ending(Status.NOT_FOUND, "SESSION"), ending(Status.RESOURCE_EXHAUSTED, "SESSIONS")],
    ],
    ids=["unknown", "another log", "after some tries", "full after a restart"],
)
def test_a_lost_session_is_opened_again_from_its_tokens(refusals: list[Any]) -> None:
    asked, opens = ask_script(BREAKS["out of reach"], *refusals, REST)
    assert asked.output().token_ids == (10, 11)
    assert list(opens[-1].continue_from) == [10]
    assert not opens[-1].HasField("resume")


REFUSALS: dict[str, tuple[Sequence[Any], str, str, int]] = {
    "at first": ([ending(Status.INVALID_ARGUMENT, "SAMPLING")], "INVALID_ARGUMENT", "SAMPLING", 1),
    "full": ([ending(Status.RESOURCE_EXHAUSTED, "SESSIONS")], "RESOURCE_EXHAUSTED", "SESSIONS", 1),
    "in mid-answer": (
        [saying(*BEGUN, then=ending(Status.UNAUTHENTICATED, "KEY_REMOVED"))], "UNAUTHENTICATED", "KEY_REMOVED", 1,
    ),
    "on coming back": (
        [BREAKS["torn"], ending(Status.UNAUTHENTICATED, "TOKEN")], "UNAUTHENTICATED", "TOKEN", 2
    ),
    "empty stream": ([saying()], "INTERNAL", "NO_OPENED", 1),
    "no opening": ([saying(commit(3, 10))], "INTERNAL", "NO_OPENED", 1),
    "another target": ([BREAKS["torn"], saying(opened("other"))], "FAILED_PRECONDITION", "TARGET_CHANGED", 2),
    "a gap": ([saying(opened(), commit(4, 10), then=listening)], "DATA_LOSS", "LOG_CHANGED", 1),
    "another log": ([saying(*BEGUN, commit(3, 12, 13), then=listening)], "DATA_LOSS", "LOG_CHANGED", 1),
    "nonsense in its status": (
        [ending(Status.INVALID_ARGUMENT, details=b"\xff\xff")], "INVALID_ARGUMENT", "", 1
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", REFUSALS)
def test_a_refusal_is_raised_at_once(how: str) -> None:
    scripts, code, reason, opens = REFUSALS[how]
    asked, seen = ask_script(*scripts)
    assert asked.refusal()[:2] == (code, reason)
    assert len(seen) == opens


def test_a_session_that_breaks_again_and_again_ends() -> None:
    """Every stream opens and none brings a word: no retry within a stream's opening would ever give up."""
    settings = replace(HASTY, reconnect_timeout_s=0.3)
    asked, seen = ask_script(saying(opened(), then=ending(Status.UNAVAILABLE)), settings=settings)
    assert asked.refusal()[0] == "UNAVAILABLE"
    assert len(seen) > 2


def test_a_message_too_large_to_send_is_refused() -> None:
    with InProcessVerifier(MockEngine()) as verifier, EdgeClient(verifier.address, link=HASTY) as client:
        with pytest.raises(SessionError, match="at most 1048576 are sent") as caught:
            client.generate("a" * (1 << 20), PARAMS)
        assert caught.value.code == "RESOURCE_EXHAUSTED"
        assert Asked(client).output().token_ids == WORDS


# -- nobody there ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["closed port", "silent port", "resetting port"])
def deaf(request: pytest.FixtureRequest) -> Any:
    """An address where no verifier answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        if request.param == "silent port":
            yield address
        elif request.param == "closed port":
            listener.close()
            yield address
        else:
            with Road(address) as road:
                road.refuse(True)
                yield road.address


def test_a_verifier_that_is_not_there_is_an_error_with_a_clear_sentence(deaf: str) -> None:
    with EdgeClient(deaf, link=HASTY) as client:
        code, reason, sentence = Asked(client).refusal()
    assert (code, reason) == ("UNAVAILABLE", "UNREACHABLE")
    assert deaf in sentence
    assert "check that it runs" in sentence


# -- leaving -----------------------------------------------------------------------------------------------------------


def rides() -> int:
    return sum(thread.name == "outrider-ride" for thread in threading.enumerate())


@pytest.mark.parametrize("how", ["sync", "async", "async task"])
def test_leaving_early_cancels_the_session(how: str) -> None:
    engine = GatedEngine()
    with InProcessVerifier(engine) as verifier:

        async def leave() -> None:
            async with AsyncEdgeClient(verifier.address, drafter(0.8)) as client:
                answering = client.stream(PROMPT, PARAMS, seed=SEED)
                if how == "async":
                    assert (await anext(answering)).token_ids
                    await answering.aclose()
                else:
                    task = asyncio.ensure_future(anext(answering))
                    while not verifier.service.sessions:
                        await asyncio.sleep(0.005)
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                await asyncio.to_thread(until, lambda: verifier.service.sessions == 0, "the verifier forgets it")

        if how != "async task":
            engine.allow(2)
        if how == "sync":
            with EdgeClient(verifier.address, drafter(0.8)) as client:
                answering = client.stream(PROMPT, PARAMS, seed=SEED)
                assert next(answering).token_ids
                answering.close()
                until(lambda: verifier.service.sessions == 0, "the verifier forgets it")
        else:
            asyncio.run(leave())
        engine.allow(10_000)
        until(lambda: not engine.sequences, "its place is free")
        until(lambda: rides() == 0, "its thread ends")


def test_a_cancel_before_the_session_is_open_is_not_lost() -> None:
    engine = GatedEngine()
    with (
        InProcessVerifier(engine) as verifier,
        Road(verifier.address) as road,
        EdgeClient(road.address, link=replace(HASTY, connect_timeout_s=DEADLINE_S, stalled_s=DEADLINE_S)) as client,
    ):
        road.pause()
        cancel = client._answers.start(PROMPT, PARAMS, SEED, lambda _: None)
        until(lambda: road.connections == 1, "the client knocks")
        cancel()
        road.resume()
        until(lambda: rides() == 0, "the ride ends")
        until(lambda: verifier.service.sessions == 0, "the verifier forgets it")
        engine.allow(10_000)


def test_a_cancel_while_the_link_is_down_ends_the_ride() -> None:
    engine = GatedEngine()
    ends: list[Any] = []
    with (
        InProcessVerifier(engine) as verifier,
        Road(verifier.address) as road,
        EdgeClient(road.address, link=HASTY) as client,
    ):
        cancel = client._answers.start(PROMPT, PARAMS, SEED, ends.append)
        engine.allow(1)
        until(lambda: len(ends) == 1, "the answer begins")
        tried = road.connections
        road.refuse(True)
        road.cut()
        until(lambda: road.connections + road.refused > tried + 1, "the client knocks")
        cancel()
        until(lambda: rides() == 0, "the ride ends")
        assert isinstance(ends[-1], SessionError)
        assert ends[-1].reason == "LEFT"
        engine.allow(10_000)


@pytest.mark.parametrize("when", ["in mid-answer", "while reconnecting", "while connecting"])
def test_closing_the_client_ends_its_sessions_with_an_error(when: str) -> None:
    engine = GatedEngine()
    with InProcessVerifier(engine) as verifier, Road(verifier.address) as road:
        client = EdgeClient(road.address, drafter(0.8), link=replace(HASTY, connect_timeout_s=DEADLINE_S))
        if when == "while connecting":
            road.refuse(True)
        asked = Asked(client)
        if when == "while connecting":
            until(lambda: road.refused > 0, "the client knocks")
        else:
            engine.allow(1)
            until(lambda: len(asked.tokens) > 0, "the answer begins")
        if when == "while reconnecting":
            road.refuse(True)
            road.cut()
            until(lambda: road.refused > 0, "the client knocks")
        closer = threading.Thread(target=client.close, daemon=True)
        closer.start()
        assert asked.refusal() == ("CANCELLED", "CLOSED", "this client was closed; make another one")
        closer.join(DEADLINE_S)
        assert not closer.is_alive()
        if when == "in mid-answer":
            until(lambda: verifier.service.sessions == 0, "the verifier is told")
        client.close()
        for late in (lambda: client.generate(PROMPT), client.model_info):
            with pytest.raises(SessionError, match="closed"):
                late()
        engine.allow(10_000)


def test_closing_the_client_ends_a_question_about_the_model() -> None:
    errors: list[Exception] = []

    def ask(client: EdgeClient) -> None:
        try:
            client.model_info()
        except SessionError as error:
            errors.append(error)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = EdgeClient(f"127.0.0.1:{silent.getsockname()[1]}")
        asking = threading.Thread(target=ask, args=(client,), daemon=True)
        asking.start()
        silent.accept()
        client.close()
        asking.join(DEADLINE_S)
    assert [str(error) for error in errors] == ["this client was closed; make another one"]


# -- company, and drafters that fail -----------------------------------------------------------------------------------


def test_threads_share_a_client() -> None:
    with InProcessVerifier(MockEngine()) as verifier, EdgeClient(verifier.address, drafter(0.8)) as client:
        for output in [asked.output() for asked in [Asked(client) for _ in range(6)]]:
            assert output.token_ids == WORDS


def test_the_asynchronous_client_answers_and_streams() -> None:
    async def ask(address: str) -> None:
        async with AsyncEdgeClient(address, drafter(0.8)) as client:
            first, second = await asyncio.gather(*[client.generate(PROMPT, PARAMS, seed=SEED) for _ in range(2)])
            chunks = [chunk async for chunk in client.stream(PROMPT, PARAMS, seed=SEED)]
            assert first.token_ids == second.token_ids == WORDS
            assert tuple(token for chunk in chunks for token in chunk.token_ids) == WORDS
            assert "".join(chunk.text for chunk in chunks) == first.text
            with pytest.raises(SessionError, match="no tokens"):
                await client.generate("")

    with InProcessVerifier(MockEngine()) as verifier:
        asyncio.run(ask(verifier.address))


class Failing(MockDrafter):
    """Drafts well for a while and then fails in one of many ways."""

    def __init__(self, way: str) -> None:
        super().__init__(3, SEED, 0.8)
        self._way, self._left = way, 12
        if way == "vocabulary":
            self.info = replace(self.info, vocabulary_fingerprint="sha256:other")

    def _fails(self, way: str) -> bool:
        return way == self._way and self._left <= 0

    def feed(self, tokens: Sequence[int]) -> None:
        self._left -= 1
        if self._fails("feed"):
            raise RuntimeError("out of memory")
        super().feed(tokens)

    def rollback(self, length: int) -> None:
        if self._fails("rollback"):
            raise OSError("the device is gone")
        super().rollback(length)

    def candidates(self) -> Candidates:
        if self._fails("id"):
            return Candidates(np.array([64]), np.array([-0.1]))
        if self._fails("negative id"):
            return Candidates(np.array([-1]), np.array([-0.1]))
        if self._fails("NaN"):
            return Candidates(np.array([5, 6]), np.array([np.nan, np.nan]))
        return super().candidates()


@pytest.mark.parametrize("pace", ["sync", "server-led"])
@pytest.mark.parametrize("way", ["feed", "rollback", "id", "negative id", "NaN", "vocabulary"])
def test_a_drafter_that_fails_costs_speed_and_one_notice(way: str, pace: str) -> None:
    failing: Drafter = Failing(way)
    with (
        InProcessVerifier(MockEngine()) as verifier,
        EdgeClient(verifier.address, failing, pace=PACES[pace]) as client,
    ):
        # A verifier that never waits would be done before the drafter has failed: the answer must be long enough.
        params = replace(PARAMS, max_tokens=COUNT if pace == "sync" else 400)
        output = Asked(client, params).output()
    assert output.token_ids == tuple(answer(PROMPT, SEED, len(output.token_ids)))
    assert len(output.metrics.notices) == 1, output.metrics.notices
    assert "plain streaming" in output.metrics.notices[0]
    assert (way == "vocabulary") == ("vocabulary is not the target's" in output.metrics.notices[0])


def test_a_drafter_that_failed_to_load_is_a_notice() -> None:
    with InProcessVerifier(MockEngine()) as verifier, EdgeClient(verifier.address, "/no/such/drafter") as client:
        assert len(client.notices) == 1
        assert "/no/such/drafter" in client.notices[0]
        assert Asked(client).output().token_ids == WORDS


@pytest.mark.parametrize("accuracy", [None, 0.8])
def test_rounds_without_drafts_do_not_hang(accuracy: float | None) -> None:
    guesser = drafter(accuracy) if accuracy is not None else None
    with (
        InProcessVerifier(MockEngine()) as verifier,
        EdgeClient(verifier.address, guesser, pace=lambda: Synchronous(0 if guesser else 4)) as client,
    ):
        output = Asked(client).output()
    assert output.token_ids == WORDS
    assert output.metrics.target_forwards == COUNT


def test_one_answer_after_another_always_finds_the_drafter_free() -> None:
    drafter = MockDrafter(1, 7, 0.8)
    with (
        InProcessVerifier(MockEngine()) as verifier,
        EdgeClient(verifier.address, drafter, pace=lambda: Synchronous(2)) as client,
    ):
        for _ in range(50):
            output = client.generate([2, 3, 4], SamplingParams(max_tokens=8), seed=7)
            assert output.metrics.drafted_tokens > 0
