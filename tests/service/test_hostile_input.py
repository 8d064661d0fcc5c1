"""What a device must not do: each gets its status code, its reason and a sentence; nobody else notices."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import pytest
from outrider.v1 import verifier_pb2 as pb
from outrider.v1 import verifier_pb2_grpc as pb_grpc

from speculation.pace.base import PATIENCE_UNLIMITED_MS
from tests.harness import InProcessVerifier
from tests.mock_engine import answer
from tests.service.raw import DEADLINE_S, PROMPT, SEED, Refusal, Stream, opening

pytestmark = pytest.mark.usefixtures("bystander")

METHOD = "/outrider.v1.VerifierService/Generate"
FEW = pb.SamplingParams(max_tokens=4)


def chat(*said: tuple[str, str]) -> pb.ChatMessages:
    return pb.ChatMessages(
        messages=[pb.ChatMessage(role=role, content=[pb.ContentPart(text=text)]) for role, text in said]
    )


def ids(*tokens: int) -> pb.TokenIds:
    return pb.TokenIds(ids=tokens)


def sampling(**fields: Any) -> dict[str, Any]:
    return {"sampling": pb.SamplingParams(**fields)}


OPENINGS: dict[str, tuple[dict[str, Any], str, str, Sequence[str]]] = {
    "unknown model": ({"model": "gpt-9"}, "NOT_FOUND", "MODEL", ["'gpt-9'", "'mock'"]),
    "long model name": ({"model": "\N{OCTOPUS}" * 100_000}, "NOT_FOUND", "MODEL", ["'mock'"]),
    "protocol version": (
        {"protocol_version": 7}, "FAILED_PRECONDITION", "PROTOCOL_VERSION", ["version 7", "speaks 1"]
    ),
    "no protocol version": (
        {"protocol_version": 0}, "FAILED_PRECONDITION", "PROTOCOL_VERSION", ["version 0"]
    ),
    "prompt id": ({"prompt_ids": ids(5, 64)}, "INVALID_ARGUMENT", "TOKEN_ID", ["the prompt", "64"]),
    "largest id": ({"prompt_ids": ids(2**32 - 1)}, "INVALID_ARGUMENT", "TOKEN_ID", ["4294967295"]),
    "continue_from id": ({"continue_from": [2, 99]}, "INVALID_ARGUMENT", "TOKEN_ID", ["continue_from", "99"]),
    "logit_bias id": (sampling(logit_bias={70: 1.0}), "INVALID_ARGUMENT", "TOKEN_ID", ["logit_bias", "70"]),
    "stop id": (sampling(stop_ids=[2, 71]), "INVALID_ARGUMENT", "TOKEN_ID", ["stop_ids", "71"]),
    "no prompt": ({"prompt_ids": None}, "INVALID_ARGUMENT", "PROMPT_MISSING", ["prompt_ids, chat or text"]),
    "no prompt ids": ({"prompt_ids": ids()}, "INVALID_ARGUMENT", "PROMPT_EMPTY", ["no tokens"]),
    "empty text": ({"text": ""}, "INVALID_ARGUMENT", "PROMPT_EMPTY", ["no tokens"]),
    "empty chat": ({"chat": chat()}, "INVALID_ARGUMENT", "PROMPT_EMPTY", ["no messages"]),
    "refused chat": (
        {"chat": chat(("narrator", "a"))}, "INVALID_ARGUMENT", "PROMPT", ["only user and assistant may speak"]
    ),
    "chat refused at length": (
        {"chat": chat(("user", "a"), ("user", "\N{OCTOPUS}" * 100_000))},
        "INVALID_ARGUMENT", "PROMPT", ["no letters for \N{OCTOPUS}"],
    ),
    "prompt that breaks the codec": ({"text": "a_b"}, "INTERNAL", "VERIFIER_FAULT", ["open it again"]),
    "full context": ({"prompt_ids": ids(*[5] * 256)}, "OUT_OF_RANGE", "CONTEXT_FULL", ["256 tokens", "holds 256"]),
    "huge prompt": ({"prompt_ids": ids(*[5] * 500_000)}, "OUT_OF_RANGE", "CONTEXT_FULL", ["500000 tokens"]),
    "huge text": ({"text": "a" * 500_000}, "OUT_OF_RANGE", "CONTEXT_FULL", ["500000 tokens"]),
    "continues too far": (
        {"continue_from": [2] * 5, "sampling": FEW}, "OUT_OF_RANGE", "CONTINUES_PAST_END", ["5 tokens", "after 4"]
    ),
    "continues past the context": (
        {"continue_from": [2] * 254}, "OUT_OF_RANGE", "CONTINUES_PAST_END", ["254 tokens", "after 253"]
    ),
    "continues past a stop": (
        {"continue_from": [2, 1, 3]}, "OUT_OF_RANGE", "CONTINUES_PAST_END", ["3 tokens", "after 2"]
    ),
    "cold": (sampling(temperature=-0.5), "INVALID_ARGUMENT", "SAMPLING", ["temperature", "-0.5"]),
    "hot": (sampling(temperature=math.inf), "INVALID_ARGUMENT", "SAMPLING", ["temperature", "inf"]),
    "NaN temperature": (sampling(temperature=math.nan), "INVALID_ARGUMENT", "SAMPLING", ["temperature", "nan"]),
    "top_k": (sampling(top_k=2**32 - 1), "INVALID_ARGUMENT", "SAMPLING", ["top_k", "4294967295"]),
    "top_p of 0": (sampling(top_p=0.0), "INVALID_ARGUMENT", "SAMPLING", ["top_p", "0.0"]),
    "top_p above 1": (sampling(top_p=1.5), "INVALID_ARGUMENT", "SAMPLING", ["top_p", "1.5"]),
    "NaN top_p": (sampling(top_p=math.nan), "INVALID_ARGUMENT", "SAMPLING", ["top_p", "nan"]),
    "NaN min_p": (sampling(min_p=math.nan), "INVALID_ARGUMENT", "SAMPLING", ["min_p", "nan"]),
    "presence": (sampling(presence_penalty=3.0), "INVALID_ARGUMENT", "SAMPLING", ["presence_penalty", "3.0"]),
    "frequency": (sampling(frequency_penalty=-2.5), "INVALID_ARGUMENT", "SAMPLING", ["frequency_penalty", "-2.5"]),
    "repetition": (sampling(repetition_penalty=0.0), "INVALID_ARGUMENT", "SAMPLING", ["repetition_penalty", "0.0"]),
    "NaN bias": (sampling(logit_bias={3: math.nan}), "INVALID_ARGUMENT", "SAMPLING", ["token 3", "nan"]),
    "no tokens": (sampling(max_tokens=0), "INVALID_ARGUMENT", "SAMPLING", ["max_tokens", "0"]),
    "empty stop": (sampling(stop=["a", ""]), "INVALID_ARGUMENT", "SAMPLING", ["stop", "none of them empty"]),
    "many stops": (sampling(stop=["a"] * 17), "INVALID_ARGUMENT", "SAMPLING", ["stop", "16"]),
    "logprobs": (sampling(logprobs=21), "INVALID_ARGUMENT", "SAMPLING", ["logprobs", "21"]),
    "acceptance rule": ({"acceptance_rule": 42}, "INVALID_ARGUMENT", "ACCEPTANCE_RULE", ["42", "SHARED_NOISE"]),
    "objective": ({"objective": 43}, "INVALID_ARGUMENT", "OBJECTIVE", ["43", "LATENCY"]),
    "unknown session": (
        {"resume": pb.Resume(session_id="0" * 32)}, "NOT_FOUND", "SESSION", ["not known here", "continue_from"]
    ),
    "resume in another protocol": (
        {"resume": pb.Resume(session_id="0"), "protocol_version": 2},
        "FAILED_PRECONDITION", "PROTOCOL_VERSION", ["version 2"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OPENINGS)
def test_an_open_that_cannot_be_right_is_refused(verifier: InProcessVerifier, case: str) -> None:
    fields, code, reason, naming = OPENINGS[case]
    known = verifier.service.sessions
    with Stream(verifier.address, opening(**fields)) as stream:
        refusal = stream.refusal()
    assert refusal[:2] == (code, reason), refusal
    assert all(value in refusal.sentence for value in naming), refusal.sentence
    assert verifier.service.sessions == known


def test_the_model_info_of_an_unknown_model_is_refused(verifier: InProcessVerifier) -> None:
    with grpc.insecure_channel(verifier.address) as channel:
        stub = pb_grpc.VerifierServiceStub(channel)
        assert stub.GetModelInfo(pb.GetModelInfoRequest()).model == "mock"
        with pytest.raises(grpc.RpcError, match=r"'other' is not served") as caught:
            stub.GetModelInfo(pb.GetModelInfoRequest(model="other"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


# -- on an open stream ------------------------------------------------------------------------------------------------

WAITING = {"patience_ms": PATIENCE_UNLIMITED_MS}
MESSAGES: dict[str, tuple[Sequence[pb.GenerateRequest], str, str, Sequence[str]]] = {
    "draft id": (
        [pb.GenerateRequest(draft=pb.Draft(start=3, tokens=[2, 64], known_length=3))],
        "INVALID_ARGUMENT", "TOKEN_ID", ["the draft", "64"],
    ),
    "too few confidences": (
        [pb.GenerateRequest(draft=pb.Draft(start=3, tokens=[2, 3], known_length=3, confidence=b"\xff"))],
        "INVALID_ARGUMENT", "CONFIDENCE", ["1 confidences", "2 tokens"],
    ),
    "confidences for nothing": (
        [pb.GenerateRequest(draft=pb.Draft(start=3, known_length=3, confidence=b"\xff"))],
        "INVALID_ARGUMENT", "CONFIDENCE", ["1 confidences", "0 tokens"],
    ),
    "too few parents": (
        [pb.GenerateRequest(draft=pb.Draft(start=3, tokens=[2, 3], known_length=3, parents=[0]))],
        "INVALID_ARGUMENT", "PARENTS", ["1 parents", "2 tokens"],
    ),
    "draft that knows the future": (
        [pb.GenerateRequest(draft=pb.Draft(start=4, tokens=[2], known_length=5))],
        "ABORTED", "KNOWN_LENGTH", ["know 5 tokens", "has 4"],
    ),
    "second open": (
        [pb.GenerateRequest(open=opening())], "INVALID_ARGUMENT", "OPENED_TWICE", ["a stream per session"]
    ),
    "empty message": (
        [pb.GenerateRequest()], "INVALID_ARGUMENT", "EMPTY_MESSAGE", ["open, draft, ping, cancel"]
    ),
    "error after good messages": (
        [
            pb.GenerateRequest(ping=pb.Ping(sent_at_us=2**64 - 1)),
            pb.GenerateRequest(draft=pb.Draft(start=0, tokens=[2] * 64, known_length=0, sent_at_us=2**64 - 1)),
            pb.GenerateRequest(),
        ],
        "INVALID_ARGUMENT", "EMPTY_MESSAGE", [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MESSAGES)
def test_a_message_that_cannot_be_right_ends_the_stream(verifier: InProcessVerifier, case: str) -> None:
    messages, code, reason, naming = MESSAGES[case]
    with Stream(verifier.address, opening(**WAITING)) as stream:
        stream.opened()
        assert len(stream.tokens(1)) == 1  # the log has 4 tokens now and waits
        for message in messages:
            stream.send_message(message)
        refusal = stream.refusal()
    assert refusal[:2] == (code, reason), refusal
    assert all(value in refusal.sentence for value in naming), refusal.sentence


def test_a_draft_past_the_lookahead_is_cut_and_never_ends_the_session(verifier: InProcessVerifier) -> None:
    """An old device may come from a verifier that took more. What it sent and is not held, it does not send again."""
    right = answer(PROMPT, SEED, 200)
    with Stream(verifier.address, opening(**sampling(max_tokens=200), **WAITING)) as stream:
        stream.opened()
        assert stream.tokens(1) == right[:1]
        stream.draft(4, right[1:120], 4)
        stream.draft(4 + 119, right[120:122], 4)
        stream.draft(2**32 - 1, [2], 4)
        stream.draft(2**32 - 1, [2] * 70_000, 4, confidence=b"\xff" * 70_000)
        rest = stream.rest()
        assert right[:1] + rest.tokens == right, "the verifier waits for nothing that the device has sent"
        statistics = rest.finished.statistics
        assert statistics.drafted_tokens == 119 + 2 + 1 + 70_000
        assert statistics.accepted_tokens >= 64
        assert statistics.dropped_tokens >= 70_000 + 1 + 2 + 119 - 64


@pytest.mark.parametrize("parents", [[2**32 - 1, 1], [1, 1], [3, 2**31]])
def test_guesses_that_hang_on_nothing_never_hold_a_session_up(verifier: InProcessVerifier, parents: list[int]) -> None:
    """A device takes them for sent and may wait for the verdict, as long as it likes."""
    with Stream(verifier.address, opening(**sampling(max_tokens=30), **WAITING)) as stream:
        stream.opened()
        first = stream.tokens(1)
        stream.draft(4, [2, 3], 4, parents=parents)
        assert first + stream.rest().tokens == answer(PROMPT, SEED, 30)


def test_a_thousand_certain_guesses_at_one_place_gain_nothing(verifier: InProcessVerifier) -> None:
    right = answer(PROMPT, SEED, 30)
    with Stream(verifier.address, opening(**sampling(max_tokens=30), **WAITING)) as stream:
        stream.opened()
        assert stream.tokens(1) == right[:1]
        guesses = [2 + i % 62 for i in range(70_000)]
        stream.draft(4, guesses, 4, parents=[0] * 70_000, confidence=b"\xff" * 70_000)
        rest = stream.rest()
    assert right[:1] + rest.tokens == right
    assert rest.finished.statistics.verified_tokens <= 8
    assert rest.finished.statistics.dropped_tokens >= 70_000 - 62


@pytest.mark.parametrize("first", [{"draft": pb.Draft()}, {"ping": pb.Ping()}, {"cancel": pb.Cancel()}, {}], ids=str)
def test_a_stream_must_begin_with_open(verifier: InProcessVerifier, first: dict[str, Any]) -> None:
    with Stream(verifier.address) as stream:
        stream.send(**first)
        assert stream.refusal() == ("FAILED_PRECONDITION", "NOT_OPEN", "the first message on a stream must be Open")


def test_a_stream_closed_before_it_opens_is_told_so(verifier: InProcessVerifier) -> None:
    with Stream(verifier.address) as stream:
        stream.half_close()
        assert stream.refusal()[:2] == ("FAILED_PRECONDITION", "NOT_OPEN")


def test_a_silent_stream_is_ended(verifier: InProcessVerifier) -> None:
    with Stream(verifier.address) as stream:
        refusal = stream.refusal()
    assert refusal[:2] == ("DEADLINE_EXCEEDED", "OPEN_TIMEOUT")
    assert "no Open message in time" in refusal.sentence


@pytest.mark.parametrize("known_length", [0, len(PROMPT) - 1, len(PROMPT) + 2, 2**32 - 1])
def test_a_resume_with_an_impossible_length_is_refused_and_harms_nothing(
    verifier: InProcessVerifier, known_length: int
) -> None:
    with Stream(verifier.address, opening(**sampling(max_tokens=6), **WAITING)) as owner:
        session_id = owner.opened().session_id
        first = owner.tokens(1)
        with Stream(verifier.address, resuming(session_id, known_length)) as stream:
            refusal = stream.refusal()
        assert refusal[:2] == ("OUT_OF_RANGE", "KNOWN_LENGTH")
        assert f"know {known_length} tokens" in refusal.sentence
        assert "from 3 to 4" in refusal.sentence
        owner.half_close()
        assert first + owner.rest().tokens == answer(PROMPT, SEED, 6)


def resuming(session_id: str, known_length: int) -> pb.Open:
    return opening(resume=pb.Resume(session_id=session_id, known_length=known_length))


def test_resume_takes_a_session_over_and_the_old_stream_ends(verifier: InProcessVerifier) -> None:
    right = answer(PROMPT, SEED, 8)
    with (
        Stream(verifier.address, opening(**sampling(max_tokens=8), **WAITING)) as old,
        Stream(verifier.address) as new,
    ):
        session_id = old.opened().session_id
        old.tokens(1)
        new.send(open=resuming(session_id, 3))
        assert new.opened().resumed_at == 3
        refusal = old.refusal()
        assert refusal[:2] == ("ABORTED", "REPLACED")
        assert "another stream has resumed this session" in refusal.sentence
        assert new.tokens(1) == right[:1]
        new.draft(4, right[1:], 4)
        new.half_close()
        assert new.rest().tokens == right[1:]


def test_a_stream_touches_no_session_but_its_own(verifier: InProcessVerifier) -> None:
    """Drafts name no session: whatever a stream sends, its neighbour's line stays empty and its log is its own."""
    with (
        Stream(verifier.address, opening(**sampling(max_tokens=6), **WAITING)) as victim,
        Stream(verifier.address, opening(prompt_ids=ids(5, 6, 8), **sampling(max_tokens=6), **WAITING)) as other,
    ):
        victim.opened()
        other.opened()
        words = victim.tokens(1)
        other.tokens(1)
        other.draft(4, answer(PROMPT, SEED, 6)[1:], 4)  # the victim's words, on the wrong stream
        assert other.tokens(1) == answer((5, 6, 8), SEED, 6)[1:2]
        victim.half_close()
        rest = victim.rest()
        assert words + rest.tokens == answer(PROMPT, SEED, 6)
        assert rest.finished.statistics.drafted_tokens == 0


@pytest.mark.parametrize(
    ("start", "known"), [(0, 0), (0, 4), (2, 1), (3, 3)], ids=["all behind", "whole log", "in the prompt", "one spent"]
)
def test_a_draft_behind_the_log_is_no_error_and_its_live_part_counts(
    verifier: InProcessVerifier, start: int, known: int
) -> None:
    right = [*PROMPT, *answer(PROMPT, SEED, 8)]
    with Stream(verifier.address, opening(**sampling(max_tokens=8), **WAITING)) as stream:
        stream.opened()
        words = stream.tokens(1)
        stream.draft(start, right[start:7], known)
        words += stream.tokens(3)
        stream.half_close()
        rest = stream.rest()
    assert [*PROMPT, *words, *rest.tokens] == right
    assert rest.finished.statistics.accepted_tokens == 3


def test_a_half_closed_stream_goes_on_without_its_device(verifier: InProcessVerifier) -> None:
    with Stream(verifier.address, opening(**sampling(max_tokens=40), **WAITING)) as stream:
        stream.half_close()
        stream.opened()
        rest = stream.rest()
    assert rest.tokens == answer(PROMPT, SEED, 40)
    assert rest.finished.reason == pb.FINISH_REASON_LENGTH


# -- below the contract -----------------------------------------------------------------------------------------------


def raw_bytes(verifier: InProcessVerifier, *messages: bytes, after_open: bool) -> Refusal:
    """What the verifier says to bytes that were sent as messages."""

    def requests() -> Any:
        if after_open:
            yield pb.GenerateRequest(open=opening(**WAITING)).SerializeToString()
        yield from messages

    with grpc.insecure_channel(verifier.address) as channel:
        call: Any = channel.stream_stream(METHOD)(requests(), timeout=DEADLINE_S)
        return Stream.refused(call)


@pytest.mark.parametrize("after_open", [False, True], ids=["first", "later"])
def test_bytes_that_are_no_message_are_refused(verifier: InProcessVerifier, after_open: bool) -> None:
    refusal = raw_bytes(verifier, b"\xff\xff\xff garbage", after_open=after_open)
    assert refusal[:2] == ("INVALID_ARGUMENT", "UNDECODABLE"), refusal
    assert "GenerateRequest" in refusal.sentence


@pytest.mark.parametrize("after_open", [False, True], ids=["first", "later"])
def test_an_oversized_message_is_refused(verifier: InProcessVerifier, after_open: bool) -> None:
    """gRPC refuses it before anything of ours sees it, so it has no reason; but it has a code and a sentence."""
    refusal = raw_bytes(verifier, bytes((1 << 20) + 1), after_open=after_open)
    assert refusal.code == "RESOURCE_EXHAUSTED", refusal
    assert "1048577 vs. 1048576" in refusal.sentence


GARBAGE: dict[str, Callable[[], bytes]] = {
    "http/1": lambda: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "noise": lambda: os.urandom(4096),
    "tls hello": lambda: bytes.fromhex("1603010200010001fc0303") + os.urandom(508),
    "preface, then noise": lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(4096),
    "endless frame": lambda: (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + bytes(70_000)
    ),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_on_the_port_is_cut_off(verifier: InProcessVerifier, kind: str) -> None:
    host, port = verifier.address.split(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as connection:
        try:
            connection.sendall(GARBAGE[kind]())
            while connection.recv(65536):  # what it says first is HTTP/2's business; then it hangs up
                pass
        except ConnectionResetError:
            pass
        except BrokenPipeError:
            pass
    with Stream(verifier.address, opening(sampling=FEW)) as stream:
        stream.opened()
        assert stream.rest().tokens == answer(PROMPT, SEED, 4)


def test_a_wrong_path_is_unimplemented(verifier: InProcessVerifier) -> None:
    with grpc.insecure_channel(verifier.address) as channel:
        call: Any = channel.unary_unary("/outrider.v1.VerifierService/Own")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=DEADLINE_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
