"""Sessions over real gRPC: whatever happens to a stream, the words are the target's, and neighbours do not notice."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from google.rpc import error_details_pb2, status_pb2
from outrider.v1 import verifier_pb2 as pb

from cloud_verifier.scheduling.scheduler import SchedulerSettings
from cloud_verifier.scheduling.session import Session
from cloud_verifier.serving.admission import AdmissionSettings
from cloud_verifier.serving.service import ServiceSettings
from cloud_verifier.serving.stream import SessionStream
from speculation.pace.base import PATIENCE_UNLIMITED_MS
from tests.harness import InProcessVerifier, LetterCodec
from tests.mock_engine import EOS, MockEngine, answer, next_token
from tests.service.engines import FaultyEngine, GatedEngine, WordyEngine
from tests.service.raw import DEADLINE_S, PROMPT, SEED, Bystander, Rest, Stream, opening, until

START = len(PROMPT)
LENGTH, STOP = pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_STOP


def ask(
    max_tokens: int = 20, *, waiting: bool = False, resume: tuple[str, int] | None = None, **fields: Any
) -> pb.Open:
    """An Open; its sampling fields and its own may be mixed."""
    names = pb.SamplingParams.DESCRIPTOR.fields_by_name
    sampling = {"max_tokens": max_tokens} | {name: fields.pop(name) for name in list(fields) if name in names}
    if waiting:
        fields["patience_ms"] = PATIENCE_UNLIMITED_MS
    if resume:
        fields["resume"] = pb.Resume(session_id=resume[0], known_length=resume[1])
    if prompt := fields.pop("prompt", None):
        fields["prompt_ids"] = pb.TokenIds(ids=prompt)
    return opening(sampling=pb.SamplingParams(**sampling), **fields)


def whole(verifier: InProcessVerifier, request: pb.Open) -> Rest:
    """An answer that nothing disturbs."""
    with Stream(verifier.address, request) as stream:
        stream.opened()
        return stream.rest()


def inside(verifier: InProcessVerifier) -> Session:
    """The one session that the verifier knows."""
    (session,) = verifier.service._sessions.values()
    return session


# -- resume and continue_from -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", range(7))
def test_a_resumed_stream_gets_the_missing_tokens_and_no_others(known: int) -> None:
    right = answer(PROMPT, SEED, 12)
    with InProcessVerifier(MockEngine()) as verifier:
        with Stream(verifier.address, ask(12, waiting=True, want_text=True)) as stream:
            session_id = stream.opened().session_id
            stream.tokens(1)
            stream.draft(START + 1, right[1:6], START + 1)
            stream.tokens(6)
        until(lambda: not inside(verifier).attached, "the cut is noticed")
        with Stream(verifier.address, ask(resume=(session_id, START + known))) as again:
            assert again.opened().resumed_at == START + known
            again.half_close()
            rest = again.rest()
    assert rest.tokens == right[known:]
    assert rest.text == LetterCodec().text(right[known:])
    assert rest.finished.statistics.resumes == 1
    assert next(commit.start for commit in rest.commits) == START + known


def test_a_cut_ends_no_patience() -> None:
    """A broken stream's last read looks like a half-closed stream; the session must still wait for its device."""
    engine = GatedEngine()
    with InProcessVerifier(engine) as verifier:
        with Stream(verifier.address, ask(waiting=True)) as stream:
            session_id = stream.opened().session_id
            stream.half_close()
            engine.allow(2)
            stream.tokens(2)
        session = inside(verifier)
        until(lambda: not session.attached, "the cut is noticed")
        engine.allow(10_000)
        with Stream(verifier.address, ask(resume=(session_id, START))) as again:
            again.opened()
            until(lambda: session.due_s(128) is None, "it waits")
            assert not session.over
            again.half_close()
            assert again.rest().tokens == WORDS


def test_after_its_lease_a_session_is_gone_and_continues_from_its_tokens() -> None:
    right = answer(PROMPT, SEED, 20)
    with InProcessVerifier(MockEngine(), service=ServiceSettings(lease_s=0.01)) as verifier:
        with Stream(verifier.address, ask(waiting=True)) as stream:
            session_id = stream.opened().session_id
            stream.tokens(1)
        until(lambda: verifier.service.sessions == 0, "the lease ends")
        with Stream(verifier.address, ask(resume=(session_id, START + 1))) as late:
            refusal = late.refusal()
        assert refusal[:2] == ("NOT_FOUND", "SESSION")
        assert "continue_from" in refusal.sentence
        assert whole(verifier, ask(continue_from=right[:1])).tokens == right[1:]


def test_a_session_that_its_device_never_heard_of_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given up while it was opened: nobody knows what to come back to."""
    send, unheard = SessionStream.send, threading.Event()

    async def never_opened(stream: SessionStream, response: pb.GenerateResponse) -> None:
        if response.HasField("opened"):
            unheard.set()
            await asyncio.Event().wait()
        await send(stream, response)

    with InProcessVerifier(MockEngine(max_sequences=1)) as verifier:
        with monkeypatch.context() as patched:
            patched.setattr(SessionStream, "send", never_opened)
            with Stream(verifier.address, ask(waiting=True)):
                assert unheard.wait(DEADLINE_S)
                assert verifier.service.sessions == 1
        until(lambda: verifier.service.sessions == 0, "it is forgotten")
        assert whole(verifier, ask()).tokens == WORDS


def letters(tokens: Sequence[int]) -> str:
    return LetterCodec().text(tokens)


WORDS = answer(PROMPT, SEED, 20)
PARAMS: dict[str, dict[str, Any]] = {
    "to the limit": {},
    "stop string": {"stop": [letters(WORDS[12:15])]},
    "stop string after two near misses": {
        "stop": [letters(WORDS[2:4]) + letters(WORDS[3:4]) * 2, letters(WORDS[8:11]) + "#", letters(WORDS[13:16])]
    },
    "text held back to the end": {"stop": [letters(WORDS[17:20]) + "#"]},
    "stop id": {"stop_ids": [WORDS[9], EOS]},
    "log-probabilities": {"logprobs": 0},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5},
}


@functools.cache
def step_by_step(case: str) -> tuple[list[int], list[str], list[float], int]:
    """Tokens, the text of each, its log-probability; the last text is what came with the end, and why it ended."""
    tokens, texts, logprobs = [], [], []
    with (
        InProcessVerifier(MockEngine()) as verifier,
        Stream(verifier.address, ask(waiting=True, want_text=True, **PARAMS[case])) as stream,
    ):
        stream.opened()
        while (response := stream.read()).WhichOneof("message") == "commit":
            (token,) = response.commit.tokens
            tokens.append(token)
            texts.append(response.commit.text)
            logprobs += [entry.logprob for entry in response.commit.logprobs]
            stream.draft(START + len(tokens), [], START + len(tokens))
    return tokens, [*texts, response.finished.text], logprobs, response.finished.reason


@pytest.mark.parametrize("case", PARAMS)
def test_continued_from_anywhere_an_answer_is_what_it_would_have_been(case: str) -> None:
    tokens, texts, logprobs, reason = step_by_step(case)
    assert tokens == WORDS[: len(tokens)]
    engine = MockEngine()
    with InProcessVerifier(engine) as verifier:
        for done in range(len(tokens) + 1):
            steps = len(engine.batch_sizes)
            rest = whole(verifier, ask(want_text=True, continue_from=tokens[:done], **PARAMS[case]))
            assert rest.tokens == tokens[done:]
            assert rest.text == "".join(texts[done:])
            assert [e.logprob for commit in rest.commits for e in commit.logprobs] == logprobs[done:]
            assert rest.finished.reason == reason
            assert rest.finished.usage.completion_tokens == len(tokens)
            if done == len(tokens):
                assert len(engine.batch_sizes) == steps, "what is complete needs no work"


# -- how answers end --------------------------------------------------------------------------------------------------


def reference(max_tokens: int, ends: Sequence[int]) -> list[int]:
    """What a target with end tokens writes."""
    log = list(PROMPT)
    while len(log) - START < max_tokens:
        log.append(next_token(log, SEED, eos_every=7))
        if log[-1] in ends:
            break
    return log[START:]


@pytest.mark.parametrize(
    ("fields", "ends", "reason"),
    [
        ({"max_tokens": 1}, [EOS], LENGTH),
        ({}, [EOS], STOP),
        ({"ignore_eos": True, "max_tokens": 30}, [], LENGTH),
        ({"ignore_eos": True, "stop_ids": [EOS]}, [EOS], STOP),
        ({"stop_ids": reference(2, [])[1:]}, [reference(2, [])[1], EOS], STOP),
        ({"ignore_eos": True, "max_tokens": 0xFFFFFFFF}, [], LENGTH),
    ],
    ids=["max_tokens", "eos", "ignore_eos", "eos as stop id", "stop id", "context"],
)
def test_an_answer_ends_where_it_must(fields: dict[str, Any], ends: Sequence[int], reason: int) -> None:
    right = reference(min(fields.get("max_tokens", 40), 60 - START), ends)
    assert reason == LENGTH or len(right) < 40
    with InProcessVerifier(MockEngine(eos_every=7, context_limit=60)) as verifier:
        for waiting in (False, True):
            with Stream(verifier.address, ask(**({"max_tokens": 40} | fields), waiting=waiting)) as stream:
                stream.opened()
                if waiting:  # right guesses that reach past the end must not
                    stream.draft(START, [*right, *[2] * 64][:64], START)
                    stream.half_close()
                rest = stream.rest()
            assert (rest.tokens, rest.finished.reason) == (right, reason)
            assert rest.finished.length == START + len(right)


@pytest.mark.parametrize("ahead", [0, 4, 16])
def test_a_stop_string_across_tokens_ends_the_text_before_it(ahead: int) -> None:
    stop = letters(WORDS[10:14])
    with (
        InProcessVerifier(MockEngine()) as verifier,
        Stream(verifier.address, ask(waiting=True, want_text=True, stop=["#", stop])) as stream,
    ):
        stream.opened()
        stream.draft(START, WORDS[:ahead], START)
        stream.half_close()
        rest = stream.rest()
    assert rest.tokens == WORDS[:14]
    assert rest.text == letters(WORDS[:10])
    assert rest.finished.reason == STOP


@pytest.mark.parametrize("when", ["while it waits", "in a step", "when it is over"])
def test_cancel_ends_an_answer(when: str) -> None:
    engine = GatedEngine()
    with InProcessVerifier(engine) as verifier:
        with Stream(verifier.address, ask(1 if when == "when it is over" else 20, waiting=True)) as stream:
            stream.opened()
            if when == "in a step":
                until(lambda: inside(verifier).sequence is not None, "the step begins")
                stream.send(cancel=pb.Cancel())
                rest = stream.rest()
                engine.allow(1)
            else:
                engine.allow(1)
                words = stream.tokens(1)
                stream.send(cancel=pb.Cancel())
                rest = stream.rest()
                assert words == WORDS[:1]
        assert rest.tokens == []
        assert rest.finished.reason == (LENGTH if when == "when it is over" else pb.FINISH_REASON_CANCELLED)
        until(lambda: not engine.sequences, "its place is free")
        assert verifier.service.sessions == 0


# -- drafts and patience ----------------------------------------------------------------------------------------------


def test_commits_tell_what_was_drafted_and_statistics_add_up() -> None:
    wrong = 2 if WORDS[5] != 2 else 3
    with InProcessVerifier(MockEngine()) as verifier, Stream(verifier.address, ask(waiting=True)) as stream:
        stream.opened()
        stream.tokens(1)
        stream.draft(START + 1, [*WORDS[1:5], wrong, *WORDS[6:9]], START + 1, sent_at_us=77)
        commit = stream.read().commit
        assert (commit.start, list(commit.tokens), commit.drafted_mask) == (START + 1, WORDS[1:6], 0b01111)
        assert commit.echo_sent_at_us == 77
        assert commit.draft_budget == 64
        stream.half_close()
        rest = stream.rest()
        assert rest.tokens == WORDS[6:]
    statistics = rest.finished.statistics
    assert (statistics.drafted_tokens, statistics.verified_tokens, statistics.accepted_tokens) == (8, 8, 4)
    assert statistics.fills == 1 + 14
    assert statistics.target_forwards == 1 + 1 + 14


def test_unlimited_patience_waits_for_drafts_and_a_nudge_steps_once() -> None:
    with InProcessVerifier(MockEngine()) as verifier, Stream(verifier.address, ask(waiting=True)) as stream:
        stream.opened()
        words = stream.tokens(1)
        for known in range(1, 6):
            stream.draft(START + known, [], START + known)
            words += stream.tokens(1)
        stream.draft(START + 3, [], START + 3)  # late: what it asks for was told already
        stream.send(ping=pb.Ping(sent_at_us=5))
        assert stream.read().pong.echo_sent_at_us == 5
        stream.send(cancel=pb.Cancel())
        rest = stream.rest()
    assert words == WORDS[:6]
    assert rest.finished.statistics.target_forwards == 6
    assert rest.finished.length == START + 6


@pytest.mark.parametrize("patience_ms", [None, 0, 1, 5])
def test_a_finite_patience_ends(patience_ms: int | None) -> None:
    with InProcessVerifier(MockEngine()) as verifier:
        rest = whole(verifier, ask(patience_ms=patience_ms))
    assert rest.tokens == WORDS
    assert rest.finished.statistics.fills == 20


def test_log_probabilities_align_with_their_tokens() -> None:
    with (
        InProcessVerifier(MockEngine()) as verifier,
        Stream(verifier.address, ask(waiting=True, logprobs=0)) as stream,
    ):
        stream.opened()
        stream.draft(START, [*WORDS[:7], 1, 1], START)
        stream.half_close()
        rest = stream.rest()
    for commit in rest.commits:
        assert [entry.logprob for entry in commit.logprobs] == [-float(token) for token in commit.tokens]
    assert rest.tokens == WORDS


# -- company ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step_tokens", "chunk_tokens"), [(1, 1), (3, 2), (7, 64), (512, 5)])
def test_small_budgets_change_no_words(step_tokens: int, chunk_tokens: int) -> None:
    budgets = SchedulerSettings(step_tokens=step_tokens, chunk_tokens=chunk_tokens)
    prompts = [[5 + n, *range(2, 2 + 7 * n)] for n in range(5)]
    engine = GatedEngine()
    with InProcessVerifier(engine, scheduler=budgets) as verifier:
        streams = [Stream(verifier.address, ask(6, prompt=prompt)) for prompt in prompts]
        for stream in streams:
            stream.opened()
        for stream, prompt in zip(streams, prompts, strict=True):
            stream.draft(len(prompt), answer(prompt, SEED, 4), len(prompt))
        engine.allow(10_000)
        for stream, prompt in zip(streams, prompts, strict=True):
            assert stream.rest().tokens == answer(prompt, SEED, 6)
            stream.cut()


def test_nine_sessions_share_steps() -> None:
    engine = GatedEngine(max_sequences=9)
    prompts = [[5, 6, n] for n in range(2, 11)]
    with InProcessVerifier(engine) as verifier:
        streams = [Stream(verifier.address, ask(prompt=prompt)) for prompt in prompts]
        for stream in streams:
            stream.opened()
        engine.allow(10_000)
        for stream, prompt in zip(streams, prompts, strict=True):
            assert stream.rest().tokens == answer(prompt, SEED, 20)
            stream.cut()
    assert engine.batch_sizes.count(9) >= 18  # all but the first steps, which began while some were still opening


def test_a_full_verifier_says_when_to_come_again_and_has_room_again() -> None:
    no_queue = ServiceSettings(admission=AdmissionSettings(max_queue=0))
    with InProcessVerifier(MockEngine(max_sequences=2), service=no_queue) as verifier:
        first = Stream(verifier.address, ask(waiting=True))
        first.opened()
        with Stream(verifier.address, ask(waiting=True)) as second:
            second.opened()
            with Stream(verifier.address, ask()) as third:  # only now: it would have taken the second place
                refusal = third.refusal()
                (packed,) = [value for key, value in third.trailers() if key == "grpc-status-details-bin"]
            assert refusal[:2] == ("RESOURCE_EXHAUSTED", "SESSIONS")
            assert "all places" in refusal.sentence
            delay = error_details_pb2.RetryInfo()
            assert any(detail.Unpack(delay) for detail in status_pb2.Status.FromString(packed).details)
            assert delay.retry_delay.ToMilliseconds() == 1000
            first.send(cancel=pb.Cancel())
            first.rest()
            until(lambda: verifier.scheduler.room > 0, "a place is free")
            assert whole(verifier, ask()).tokens == WORDS
        first.cut()


@pytest.mark.parametrize("fault", ["step", "short", "truncate", "close", "open"])
def test_a_fault_of_the_engine_stays_with_its_session(fault: str) -> None:
    engine = FaultyEngine(fault)
    with InProcessVerifier(engine) as verifier:
        healthy = Bystander(verifier.address)
        with Stream(verifier.address, ask(prompt=[0, 5])) as stream:
            stream.opened()
            if fault == "close":  # only the place is lost
                assert stream.rest().tokens == answer([0, 5], SEED, 20)
            else:
                refusal = stream.refusal()
                assert refusal[:2] == ("INTERNAL", "ENGINE_FAILED")
                assert "continue_from" in refusal.sentence
        healthy.finish()
        until(lambda: not engine.sequences, "all places are free")


class ChokingCodec(LetterCodec):
    """Its decoder fails on the tenth word of the usual answer."""

    def stream(self, before: Sequence[int] = ()) -> Any:
        inner = super().stream(before)
        push = inner.push

        def choke(token: int) -> str:
            if token == WORDS[9]:
                raise RuntimeError("invalid prefix encountered")
            return push(token)

        inner.push = choke  # type: ignore[method-assign]
        return inner


def test_a_decoder_that_fails_ends_its_session_only() -> None:
    with InProcessVerifier(MockEngine(), ChokingCodec()) as verifier:
        other = answer([5, 6, 9], SEED, 8)
        assert WORDS[9] not in other
        with Stream(verifier.address, ask(8, prompt=[5, 6, 9], waiting=True)) as healthy:
            healthy.opened()
            with Stream(verifier.address, ask()) as stream:
                assert stream.refusal()[:2] == ("INTERNAL", "ENGINE_FAILED")
            healthy.half_close()
            assert healthy.rest().tokens == other


class SlowCodec(LetterCodec):
    """Takes as long over a text as the test wants."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def encode_text(self, text: str) -> list[int]:
        self.begun.set()
        assert self.go_on.wait(DEADLINE_S)
        return super().encode_text(text)


def test_a_long_prompt_on_its_way_to_tokens_holds_up_nobody() -> None:
    codec = SlowCodec()
    with InProcessVerifier(MockEngine(), codec) as verifier:
        healthy = Bystander(verifier.address)
        with Stream(verifier.address, opening(text="abc", sampling=pb.SamplingParams(max_tokens=4))) as slow:
            until(codec.begun.is_set, "the prompt arrives")
            healthy.finish()
            codec.go_on.set()
            slow.opened()
            assert slow.rest().tokens == answer([2, 3, 4], SEED, 4)


# -- devices that are slow or away ------------------------------------------------------------------------------------

SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 8192)]


def test_a_device_that_does_not_read_is_waited_for_and_blocks_nobody() -> None:
    """What was written but not read is one message and a little of the log: the rest is written when there is room."""
    count = 12_000  # of which each takes 300 bytes: several times what the buffers hold (30,000 took 20 s)
    engine = WordyEngine(context_limit=count + 10)
    with (
        InProcessVerifier(engine, scheduler=SchedulerSettings(unread_tokens=100)) as verifier,
        Stream(verifier.address, ask(count, logprobs=20), SMALL_WINDOW) as slow,
    ):
        slow.opened()
        session = inside(verifier)
        until(lambda: session.due_s(100) is None, "the session waits for its reader")
        assert not session.over
        assert session.line.length - session.sent == 100
        other = whole(verifier, ask(50, prompt=[5]))
        assert other.tokens == [2 + n % 60 for n in range(50)]
        assert len(slow.rest().tokens) == count


def test_a_session_without_a_stream_writes_on_so_far_and_no_further() -> None:
    engine = GatedEngine(context_limit=4096)
    with InProcessVerifier(engine, scheduler=SchedulerSettings(unread_tokens=5)) as verifier:
        with Stream(verifier.address, ask(40)) as stream:
            session_id = stream.opened().session_id
            engine.allow(3)
            words = stream.tokens(3)
        session = inside(verifier)
        until(lambda: not session.attached, "the cut is noticed")
        engine.allow(10_000)
        until(lambda: session.line.length - session.sent >= 5, "it has written on")
        assert session.due_s(5) is None
        assert session.line.length - session.sent == 5
        with Stream(verifier.address, ask(resume=(session_id, START + 3))) as again:
            again.opened()
            words += again.rest().tokens
    assert words == answer(PROMPT, SEED, 40)


def test_a_session_resumed_from_a_half_closed_stream_waits_for_drafts_again() -> None:
    engine = GatedEngine()
    with (
        InProcessVerifier(engine) as verifier,
        Stream(verifier.address, ask(8, waiting=True)) as old,
        Stream(verifier.address) as new,
    ):
        session_id = old.opened().session_id
        (session,) = verifier.service._sessions.values()
        old.half_close()
        until(lambda: session.half_closed, "the verifier knows that the old stream brings no drafts")
        new.send(open=ask(resume=(session_id, START)))
        new.opened()
        assert not session.half_closed
        engine.allow(100)
        words = new.tokens(1)
        new.half_close()
        assert words + new.rest().tokens == answer(PROMPT, SEED, 8)
