"""Opening a session: long prompts on slow links, busy verifiers, and prompts that have changed by the next time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from grpc.aio._call import StreamStreamCall
from outrider.v1 import verifier_pb2 as pb

from cloud_verifier.serving.address import Address
from cloud_verifier.serving.open_request import prompt_fingerprint
from cloud_verifier.serving.stream import PROMPT_PIECE_TOKENS
from cloud_verifier.serving.stream_reader import MAX_OPEN_BYTES, MIN_PIECE_BYTES
from edge_client.client import EdgeClient, SamplingParams
from edge_client.drafters.base import Candidates
from edge_client.errors import SessionError
from edge_client.link.channel import LinkSettings
from edge_client.link.retry_policy import OpenRetryPolicy
from edge_client.link.session_link import QUEUE_POSITION, WHOLE_OPEN_BYTES, SessionLink
from edge_client.types import LinkState
from netlab.link import LinkSettings as RoadSettings
from speculation.pace.base import Synchronous
from tests.harness import InProcessVerifier, LetterCodec, MockDrafter
from tests.mock_engine import MockEngine, answer
from tests.service.engines import GatedEngine, WordyEngine
from tests.service.links import Road, Script, ScriptedVerifier, ending, listening, port_of, saying
from tests.service.raw import DEADLINE_S, PROMPT, SEED, Stream, opening, until
from tests.speaking import SpeakingDrafter

LONG = "hello" * 600  # 3000 tokens: more than one piece of prompt ids
HUGE = "hello" * 20_000  # 100 kB
FEW = SamplingParams(max_tokens=3)
ROOMY = 1 << 20


def _progress(**fields: int) -> pb.GenerateResponse:
    return pb.GenerateResponse(open_progress=pb.OpenProgress(**fields))


def _opened(length: int, fingerprint: int = 0) -> pb.GenerateResponse:
    opened = pb.Opened(session_id="s", prompt_length=length, resumed_at=length, prompt_fingerprint=fingerprint)
    return pb.GenerateResponse(opened=opened)


def _commit(start: int, tokens: Sequence[int]) -> pb.GenerateResponse:
    return pb.GenerateResponse(commit=pb.Commit(start=start, tokens=tokens))


# -- a long prompt on its way up ---------------------------------------------------------------------------------------


def test_a_prompt_that_takes_longer_than_any_time_limit_is_opened() -> None:
    hasty = LinkSettings(connect_timeout_s=1.5, place_timeout_s=1.5, stalled_s=1.5)
    slow = RoadSettings(up_kbps=200)  # 4 s for the prompt
    with (
        InProcessVerifier(WordyEngine(context_limit=ROOMY)) as verifier,
        Road(verifier.address, slow) as road,
        EdgeClient(road.address, link=hasty) as client,
    ):
        output = client.generate(HUGE, FEW, seed=SEED)
        assert road.connections == 1
    assert output.prompt_tokens == len(HUGE)
    assert len(output.token_ids) == 3


def test_the_time_counts_from_the_last_byte_that_is_new() -> None:
    async def deadlines() -> list[float]:
        patience, found = OpenRetryPolicy(LinkSettings(connect_timeout_s=50, place_timeout_s=50), again=False), []
        async with patience.deadline:
            for received in (0, 8192, 8192, 4096, 0, 16384):
                await asyncio.sleep(0.002)
                patience.progressed(received)
                found.append(patience.deadline.when() or 0.0)
        return found

    reached, first, *repeated, second = asyncio.run(deadlines())
    assert reached < first < second
    assert repeated == [first] * 3


def test_a_verifier_that_stops_taking_a_prompt_is_given_up() -> None:
    """Each try gets as far as the one before, and no further."""
    hasty = LinkSettings(connect_timeout_s=0.5, place_timeout_s=0.5, stalled_s=0.2)
    with (
        ScriptedVerifier(saying(_progress(received_bytes=8192), then=listening)) as verifier,
        EdgeClient(verifier.address, link=hasty) as client,
        pytest.raises(SessionError, match="did not open a session in time") as caught,
    ):
        client.generate(HUGE, seed=SEED)
    assert caught.value.reason == "UNREACHABLE"


def test_a_verifier_that_knows_no_pieces_gets_the_prompt_whole() -> None:
    finished = pb.GenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_STOP))
    old = saying(_opened(5), _commit(5, [7]), finished)
    refusing = ending(grpc.StatusCode.FAILED_PRECONDITION, "NOT_OPEN")
    with ScriptedVerifier(refusing, old) as verifier, EdgeClient(verifier.address) as client:
        assert [client.generate(HUGE, seed=SEED).token_ids for _ in range(2)] == [(7,), (7,)]
    assert [request.text for request in verifier.opens] == ["", HUGE, HUGE]


def test_short_requests_go_whole() -> None:
    finished = pb.GenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_STOP))
    prompt = "h" * (WHOLE_OPEN_BYTES - 1000)
    with (
        ScriptedVerifier(saying(_opened(5), _commit(5, [7]), finished)) as verifier,
        EdgeClient(verifier.address) as client,
    ):
        client.generate(prompt, seed=SEED)
    assert [request.text for request in verifier.opens] == [prompt]


def _pieces(*sizes: int, last: bool = True) -> Iterator[pb.GenerateRequest]:
    for number, size in enumerate(sizes):
        piece = pb.OpenPiece(data=b"\0" * size, last=last and number == len(sizes) - 1)
        yield pb.GenerateRequest(open_piece=piece)


@pytest.mark.parametrize("several_models", [False, True])
@pytest.mark.parametrize(
    ("requests", "reason"),
    [
        ([*_pieces(MIN_PIECE_BYTES - 1, 1)], "OPEN_PIECE"),
        ([*_pieces(MIN_PIECE_BYTES, last=False), pb.GenerateRequest(open=opening())], "OPEN_PIECE"),
        ([*_pieces(MAX_OPEN_BYTES // 2, MAX_OPEN_BYTES // 2, 1)], "TOO_LARGE"),
        ([*_pieces(100)], "UNDECODABLE"),
        ([*_pieces(0)], "PROTOCOL_VERSION"),
    ],
)
def test_pieces_that_are_none_are_refused(
    requests: list[pb.GenerateRequest], reason: str, several_models: bool
) -> None:
    others = {"other": MockEngine()} if several_models else {}
    with InProcessVerifier(MockEngine(), others=dict(others)) as verifier, Stream(verifier.address) as stream:
        for request in requests:
            stream.send_message(request)
        stream.half_close()
        assert stream.refusal().reason == reason
        assert not verifier.service.sessions


@pytest.mark.parametrize("several_models", [False, True])
def test_pieces_are_answered_one_by_one_and_put_together(several_models: bool) -> None:
    message = opening(prompt_ids=None, text=LONG * 5, sampling=pb.SamplingParams(max_tokens=3))
    data = message.SerializeToString()
    others = {"other": WordyEngine(context_limit=ROOMY)} if several_models else {}
    engine = WordyEngine(context_limit=ROOMY)
    with InProcessVerifier(engine, others=dict(others)) as verifier, Stream(verifier.address) as stream:
        for start in range(0, len(data), MIN_PIECE_BYTES):
            end = start + MIN_PIECE_BYTES
            stream.send(open_piece=pb.OpenPiece(data=data[start:end], last=end >= len(data)))
        received = []
        while (response := stream.read()).WhichOneof("message") == "open_progress":
            received.append(response.open_progress.received_bytes)
        assert [size for size in received if size] == [*range(MIN_PIECE_BYTES, len(data), MIN_PIECE_BYTES), len(data)]
        assert response.opened.prompt_length == len(LONG) * 5
        assert len(stream.rest().tokens) == 3


# -- a long prompt's ids on their way down -----------------------------------------------------------------------------


def test_a_drafter_gets_a_long_prompt_in_pieces_and_drafts() -> None:
    with (
        InProcessVerifier(WordyEngine()) as verifier,
        EdgeClient(verifier.address, _Counting(), pace=lambda: Synchronous(4)) as client,
        EdgeClient(verifier.address) as streaming,
    ):
        output = client.generate(LONG, SamplingParams(max_tokens=200), seed=SEED)
        alone = streaming.generate(LONG, SamplingParams(max_tokens=200), seed=SEED)
    assert output.token_ids == alone.token_ids
    assert output.metrics.notices == ()
    assert output.metrics.accepted_tokens > 0


class _Counting(MockDrafter):
    """Knows what WordyEngine writes."""

    def __init__(self) -> None:
        super().__init__(1, SEED, 1.0)

    def candidates(self) -> Candidates:
        return Candidates(np.array([2 + (self.length - 1) % 60]), np.array([-0.1]))


def test_prompt_ids_go_on_after_a_break_from_what_is_known() -> None:
    ids = LetterCodec().encode_text(LONG)
    wanted = opening(prompt_ids=None, text=LONG, want_prompt_ids=True, incremental=True, patience_ms=0xFFFFFFFF)
    with InProcessVerifier(MockEngine()) as verifier:
        with Stream(verifier.address, wanted) as stream:
            opened = stream.opened()
            assert not opened.prompt_ids
            first = _prompt_ids(stream, len(ids))
        again = opening(
            prompt_ids=None,
            want_prompt_ids=True,
            incremental=True,
            resume=pb.Resume(session_id=opened.session_id, known_length=len(ids), known_prompt_ids=PROMPT_PIECE_TOKENS),
        )
        until(lambda: not verifier.service.streams, "the verifier sees that the stream broke")
        with Stream(verifier.address, again) as stream:
            assert stream.opened().session_id == opened.session_id
            rest = _prompt_ids(stream, len(ids) - PROMPT_PIECE_TOKENS)
    assert first == ids
    assert rest == ids[PROMPT_PIECE_TOKENS:]


def _prompt_ids(stream: Stream, count: int) -> list[int]:
    ids: list[int] = []
    while len(ids) < count:
        ids += stream.read().prompt_ids.ids
    return ids


def test_a_device_that_takes_no_pieces_gets_its_answer_without_ids_that_fit_no_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cloud_verifier.serving.service.MAX_OPENED_BYTES", 2000)
    wanted = opening(prompt_ids=None, text=LONG, want_prompt_ids=True, sampling=pb.SamplingParams(max_tokens=3))
    with InProcessVerifier(WordyEngine()) as verifier, Stream(verifier.address, wanted) as stream:
        opened = stream.opened()
        assert not opened.prompt_ids
        assert opened.prompt_length == len(LONG)
        assert len(stream.rest().tokens) == 3


def test_a_drafter_that_never_hears_of_the_prompt_does_not_draft() -> None:
    finished = pb.GenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_STOP))
    silent = saying(_opened(5), _commit(5, [7]), finished)
    with ScriptedVerifier(silent) as verifier, EdgeClient(verifier.address, MockDrafter(1, SEED, 1.0)) as client:
        output = client.generate("hello", seed=SEED)
    assert (output.token_ids, output.metrics.drafted_tokens) == ((7,), 0)


# -- a place that takes its time ---------------------------------------------------------------------------------------


class _SlowCodec(LetterCodec):
    def __init__(self) -> None:
        self.go_on = threading.Event()

    def encode_text(self, text: str) -> list[int]:
        assert self.go_on.wait(DEADLINE_S)
        return super().encode_text(text)


@pytest.mark.parametrize("busy_with", ["others", "the prompt"])
def test_a_verifier_that_is_busy_is_not_taken_for_unreachable(busy_with: str) -> None:
    impatient = LinkSettings(waiting_s=0.7, offline_after_s=1.0, connect_timeout_s=1.5, stalled_s=1.5)
    codec = _SlowCodec()
    holding = opening(patience_ms=0xFFFFFFFF, sampling=pb.SamplingParams(max_tokens=20))
    with InProcessVerifier(MockEngine(max_sequences=1), codec) as verifier:
        holder = Stream(verifier.address, holding if busy_with == "others" else None)
        if busy_with == "others":
            holder.opened()
            codec.go_on.set()
        drafter = SpeakingDrafter(SEED)
        with EdgeClient(verifier.address, drafter, offline_answers="auto", link=impatient) as client:
            release = threading.Timer(3.0, _let_in, (holder, codec))
            release.start()
            output = client.generate("hello", SamplingParams(max_tokens=8), seed=SEED)
        release.join()
        holder.cut()
    assert output.offline is None
    assert output.token_ids == tuple(answer(LetterCodec().encode_text("hello"), SEED, 8))


def _in_its_queue(told_by: str, place_after_s: float) -> Script:
    """A verifier that is full. Older ones tell so once, in the initial metadata."""

    def script(_open: pb.Open, _requests: Any, context: grpc.ServicerContext) -> Iterator[pb.GenerateResponse]:
        if told_by == "metadata":
            context.send_initial_metadata(((QUEUE_POSITION, "3"),))
        until_s = time.monotonic() + place_after_s
        while time.monotonic() < until_s and context.is_active():
            if told_by == "progress":
                yield _progress(queue_position=3)
            time.sleep(0.05)
        yield _opened(len(PROMPT))
        yield _commit(len(PROMPT), [5])
        yield pb.GenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_STOP))

    return script


@pytest.mark.parametrize("told_by", ["metadata", "progress"])
def test_a_place_in_a_queue_is_waited_for_in_peace(told_by: str) -> None:
    """Longer than for anything else, and nobody is told that the network is away, nor asked to answer alone."""
    link = LinkSettings(
        quiet_s=0.05, waiting_s=0.1, offline_after_s=0.2, connect_timeout_s=0.4, stalled_s=0.3, place_timeout_s=30
    )
    with (
        ScriptedVerifier(_in_its_queue(told_by, 1.5)) as verifier,
        EdgeClient(verifier.address, SpeakingDrafter(SEED), offline_answers="auto", link=link) as client,
    ):
        chunks = list(client.stream(PROMPT, seed=SEED))
    assert [token for chunk in chunks for token in chunk.token_ids] == [5]
    assert {chunk.link for chunk in chunks} == {LinkState.LIVE}
    assert len(verifier.opens) == 1


@pytest.mark.parametrize("told_by", ["metadata", "progress"])
def test_a_place_that_never_comes_is_told_as_such(told_by: str) -> None:
    link = LinkSettings(waiting_s=5, connect_timeout_s=0.4, stalled_s=0.3, place_timeout_s=0.6)
    with (
        ScriptedVerifier(_in_its_queue(told_by, DEADLINE_S)) as verifier,
        EdgeClient(verifier.address, SpeakingDrafter(SEED), offline_answers="auto", link=link) as client,
        pytest.raises(SessionError, match="no place became free") as caught,
    ):
        client.generate(PROMPT, seed=SEED)
    assert (caught.value.code, caught.value.reason) == ("RESOURCE_EXHAUSTED", "QUEUED")


@pytest.mark.parametrize("told_by", ["metadata", "progress"])
def test_who_gives_up_in_a_queue_says_so_for_the_place_may_be_on_its_way(told_by: str) -> None:
    """A verifier that had let it in would keep the session, whose id nobody knows, for a device to come back."""
    said: list[str | None] = []

    def let_in(_open: pb.Open, requests: Any, context: grpc.ServicerContext) -> Iterator[pb.GenerateResponse]:
        if told_by == "metadata":
            context.send_initial_metadata(((QUEUE_POSITION, "1"),))
        else:
            yield _progress(queue_position=1)
        said.append(next(requests).WhichOneof("message"))
        yield _opened(len(PROMPT))
        yield pb.GenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_CANCELLED))

    with ScriptedVerifier(let_in) as verifier, EdgeClient(verifier.address) as edge:
        ends: list[object] = []
        cancel = edge._answers.start(PROMPT, FEW, SEED, ends.append)
        until(
            lambda: any(vars(link)["_waiting_call"] for link in edge._channel._links.values()), "it waits for a place"
        )
        cancel()
        until(lambda: any(isinstance(end, SessionError) for end in ends), "it is over")
        until(lambda: said == ["cancel"], "the verifier reads that nobody wants the place")
        until(lambda: not edge._channel._links, "the stream ends")


def _let_in(holder: Stream, codec: _SlowCodec) -> None:
    codec.go_on.set()
    holder.send(cancel=pb.Cancel())


# -- a prompt that reads otherwise when it is opened again -------------------------------------------------------------


class _Dated(LetterCodec):
    """A chat template with a date in it."""

    def __init__(self, day: str) -> None:
        self._day = day

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        return self.encode_text(self._day) + super().encode_chat(messages)


class _Restarted:
    """A verifier that is started again some time later, with another day in its template; on the same port."""

    def __init__(self, first: str, then: str) -> None:
        self._engine, self._then = GatedEngine(), then
        self._one = InProcessVerifier(self._engine, _Dated(first))

    def __enter__(self) -> _Restarted:
        self._one.__enter__()
        self.address = self._one.address
        return self

    def __exit__(self, *_: Any) -> None:
        self._one.__exit__(None, None, None)

    def ask(self, content: str, drafter: MockDrafter | None = None, count: int = 60) -> tuple[int, ...]:
        """Tokens of an answer during which the verifier is started again."""
        tokens: list[int] = []
        restarted = False
        self._engine.allow(2 if len(content) < 100 else 10)
        messages = [{"role": "user", "content": content}]
        with Road(self.address) as road, EdgeClient(road.address, drafter) as client:
            for chunk in client.stream(messages, SamplingParams(max_tokens=count), seed=SEED):
                tokens += chunk.token_ids
                if tokens and not restarted:
                    restarted = True
                    road.refuse(True)
                    road.cut()
                    self._engine.allow(1000)
                    self._one.__exit__(None, None, None)
                    engine = MockEngine()
                    where = Address(port=port_of(self.address))
                    self._one = InProcessVerifier(engine, _Dated(self._then), address=where)
                    self._one.__enter__()
                    road.refuse(False)
        return tuple(tokens)


@pytest.mark.parametrize("drafts", [False, True])
@pytest.mark.parametrize("then", ["8", "9", "10"])
def test_an_answer_goes_on_under_the_prompt_it_began_with(then: str, drafts: bool) -> None:
    codec = _Dated("9")
    prompt = codec.encode_chat([{"role": "user", "content": "hello"}])
    with _Restarted("9", then) as verifier:
        tokens = verifier.ask("hello", MockDrafter(3, SEED, 0.5) if drafts else None)
    assert tokens == tuple(answer(prompt, SEED, 60))


@pytest.mark.parametrize("then", ["8", "10"])
def test_an_answer_never_goes_on_under_another_prompt(then: str) -> None:
    """Where the device has no ids: a long prompt, and no drafter that needed them."""
    with _Restarted("9", then) as verifier, pytest.raises(SessionError, match="other tokens") as caught:
        verifier.ask("h" * 1100)
    assert (caught.value.code, caught.value.reason) == ("FAILED_PRECONDITION", "PROMPT_CHANGED")
    assert caught.value.so_far is not None


def test_an_answer_that_broke_off_is_not_continued_under_another_prompt() -> None:
    messages = [{"role": "user", "content": "hello"}]
    with InProcessVerifier(MockEngine(), _Dated("9")) as verifier, EdgeClient(verifier.address) as client:
        before = client.generate(messages, SamplingParams(max_tokens=5), seed=SEED)
        params = SamplingParams(max_tokens=10)
        whole = client.generate(messages, params, continues=before)
    right = _Dated("9").encode_chat(messages)
    assert whole.token_ids == tuple(answer(right, SEED, 10))
    with (
        InProcessVerifier(MockEngine(), _Dated("8")) as verifier,
        EdgeClient(verifier.address) as client,
        pytest.raises(SessionError) as caught,
    ):
        client.generate(messages, params, continues=before)
    assert caught.value.reason == "PROMPT_CHANGED"


@pytest.mark.parametrize(("length", "fingerprint"), [(6, 0), (5, 4)])
def test_a_verifier_that_does_not_compare_prompts_is_found_out(length: int, fingerprint: int) -> None:
    broken = ending(grpc.StatusCode.UNAVAILABLE)
    forgotten = ending(grpc.StatusCode.NOT_FOUND, "SESSION")
    scripts = [
        saying(_opened(5, 3), _commit(5, [7]), then=broken),
        forgotten,
        saying(_opened(length, fingerprint), _commit(length + 1, [8]), then=listening),
    ]
    with (
        ScriptedVerifier(*scripts) as verifier,
        EdgeClient(verifier.address) as client,
        pytest.raises(SessionError) as caught,
    ):
        client.generate(LONG, seed=SEED)
    assert caught.value.reason == "PROMPT_CHANGED"
    assert verifier.opens[-1].prompt_fingerprint == 3
    assert list(verifier.opens[-1].continue_from) == [7]


def test_a_verifier_refuses_to_go_on_under_another_prompt_than_the_device_knows() -> None:
    """Not left to devices: one that does not compare would go on with other words."""
    going_on = {"continue_from": answer(PROMPT, SEED, 2), "sampling": pb.SamplingParams(max_tokens=4)}
    with InProcessVerifier(MockEngine()) as verifier:
        for fingerprint in (0, prompt_fingerprint(PROMPT)):
            with Stream(verifier.address, opening(prompt_fingerprint=fingerprint, **going_on)) as stream:
                stream.opened()
                assert stream.rest().tokens == answer(PROMPT, SEED, 4)[2:]
        with Stream(verifier.address, opening(prompt_fingerprint=3, **going_on)) as stream:
            assert stream.refusal()[:2] == ("FAILED_PRECONDITION", "PROMPT_CHANGED")


def test_fingerprints_of_prompts_are_the_contract_s() -> None:
    assert prompt_fingerprint(PROMPT) == 0x86EA0DCB03464C2E
    assert len({prompt_fingerprint(ids) for ids in ([1, 2], [2, 1], [1, 2, 0], [258])}) == 4


@pytest.mark.parametrize("early", [True, False], ids=["before its connection stands", "just when it stands"])
def test_whoever_gives_up_before_asking_is_not_asked_for(early: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if the connection stands by the time that it gives up, and only has not been told yet."""
    asked: list[int] = []
    ask, connect = SessionLink._opening, StreamStreamCall.wait_for_connection

    def heard(link: SessionLink) -> pb.Open:
        asked.append(link.open_request.seed)
        return ask(link)

    async def given_up(call: Any) -> None:
        if early:
            leave()
        await connect(call)
        if not early:
            asyncio.get_running_loop().call_soon(leave)
            await asyncio.sleep(0)

    monkeypatch.setattr(SessionLink, "_opening", heard)
    with InProcessVerifier(MockEngine()) as verifier, EdgeClient(verifier.address) as edge:

        def leave() -> None:
            for link in edge._channel._links.values():
                link.leave()

        with monkeypatch.context() as patched:
            patched.setattr(StreamStreamCall, "wait_for_connection", given_up)
            with pytest.raises(SessionError, match="cancelled"):
                edge.generate(PROMPT, FEW, seed=SEED)
        assert list(edge.generate(PROMPT, FEW, seed=SEED + 1).token_ids) == answer(PROMPT, SEED + 1, 3)
    assert asked == [SEED + 1]
