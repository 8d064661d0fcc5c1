"""Prompts that take long to read: they are refused by their size, charged, and delay nobody else's."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from outrider.v1 import verifier_pb2 as pb

from cloud_verifier.security.authentication import Authentication
from cloud_verifier.security.keys import KeyFile, KeyStore
from tests.harness import InProcessVerifier, LetterCodec
from tests.mock_engine import MockEngine
from tests.service.raw import DEADLINE_S, Refusal, Stream, opening, until

CONTEXT = 4096
ONE = pb.SamplingParams(max_tokens=1)


class WatchedCodec(LetterCodec):
    """Notes what it reads, and reads long texts only when it is let."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def encode_text(self, text: str) -> list[int]:
        self.read.append(text[:1])
        if len(text) > 100:
            assert self.go_on.wait(DEADLINE_S)
        return super().encode_text(text)

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        self.read.append("chat")
        return super().encode_chat(messages)


class Bench:
    def __init__(self, verifier: InProcessVerifier, codec: WatchedCodec, keys: dict[str, str]) -> None:
        self.verifier, self.codec, self.keys = verifier, codec, keys

    def stream(self, name: str, **prompt: Any) -> Stream:
        return Stream(self.verifier.address, opening(sampling=ONE, **prompt), api_key=self.keys[name])

    def refusal(self, name: str, **prompt: Any) -> Refusal:
        with self.stream(name, **prompt) as stream:
            return stream.refusal()

    def owes(self, name: str) -> float:
        bucket = self.verifier.service._admission._accounts[name].tokens
        assert bucket is not None
        return bucket.burst - bucket._level


@contextmanager
def bench(tmp_path: Path, **quota: int) -> Iterator[Bench]:
    """quota: mallory's."""
    path = tmp_path / "keys.toml"
    keys = {"mallory": KeyFile(path).add("mallory", quota), "ann": KeyFile(path).add("ann", {})}
    codec = WatchedCodec()
    authentication = Authentication(KeyStore(path))
    engine = MockEngine(max_sequences=16, context_limit=CONTEXT)
    with InProcessVerifier(engine, codec, authentication=authentication) as verifier:
        yield Bench(verifier, codec, keys)
        codec.go_on.set()


def chat(*texts: str) -> pb.ChatMessages:
    return pb.ChatMessages(
        messages=[pb.ChatMessage(role="user", content=[pb.ContentPart(text=text)]) for text in texts]
    )


TOO_LONG: dict[str, tuple[dict[str, Any], str]] = {
    "text": ({"text": "a" * 5000}, "5000 bytes, which make at least 5000 tokens"),
    "one message": ({"chat": chat("a" * 5000)}, "5000 bytes, which make at least 5000 tokens"),
    "many messages": ({"chat": chat(*["a"] * 5000)}, "5000 parts, which make at least 5000 tokens"),
    "messages of nothing": ({"chat": chat(*[""] * 5000)}, "5000 parts, which make at least 5000 tokens"),
    "ids": ({"prompt_ids": pb.TokenIds(ids=[2] * 5000)}, "the prompt has 5000 tokens"),
}


@pytest.mark.parametrize("case", TOO_LONG)
def test_a_prompt_that_must_be_too_long_is_refused_unread(tmp_path: Path, case: str) -> None:
    prompt, sentence = TOO_LONG[case]
    with bench(tmp_path, max_prompt_tokens=100) as subject:
        refused = subject.refusal("mallory", **prompt)
        assert refused[:2] == ("OUT_OF_RANGE", "PROMPT_TOO_LONG")
        assert sentence in refused.sentence
        assert "may send 100" in refused.sentence
        refused = subject.refusal("ann", **prompt)
        assert refused[:2] == ("OUT_OF_RANGE", "CONTEXT_FULL")
        assert sentence in refused.sentence
        assert f"the context holds {CONTEXT}" in refused.sentence
        assert not subject.codec.read


def test_a_prompt_of_any_allowed_length_is_read(tmp_path: Path) -> None:
    with bench(tmp_path, max_prompt_tokens=100) as subject:
        for name, length in (("mallory", 100), ("ann", CONTEXT - 1)):
            with subject.stream(name, text="a" * length) as stream:
                assert stream.opened().prompt_length == length
        assert subject.refusal("mallory", chat=chat("a" * 100)).reason == "PROMPT_TOO_LONG", "the template adds one"


CHARGED: dict[str, tuple[dict[str, Any], str, int]] = {
    "too long": ({"text": "a" * 4000}, "PROMPT_TOO_LONG", 100),
    "refused by the template": (
        {"chat": pb.ChatMessages(messages=[pb.ChatMessage(role="nobody", content=[pb.ContentPart(text="a" * 60)])])},
        "PROMPT",
        60,
    ),
}


@pytest.mark.parametrize("case", CHARGED)
def test_refused_prompts_are_charged_but_no_more_than_a_prompt_may_have(tmp_path: Path, case: str) -> None:
    prompt, reason, cost = CHARGED[case]
    with bench(tmp_path, max_prompt_tokens=100, tokens_per_minute=1000) as subject:
        refused = 0
        while (refusal := subject.refusal("mallory", **prompt)).reason != "PRINCIPAL_TOKENS":
            assert refusal.reason == reason
            refused += 1
            assert refused < 100, "nothing is charged"
        assert refused > 1000 // cost
        owed = subject.owes("mallory")
        for _ in range(5):
            assert subject.refusal("mallory", **prompt).reason == "PRINCIPAL_TOKENS"
        assert subject.owes("mallory") <= owed, "who owes is refused for nothing"
        with subject.stream("ann", text="a") as stream:
            stream.opened()


def test_a_long_prompt_delays_no_short_one_of_anybody(tmp_path: Path) -> None:
    with bench(tmp_path) as subject:
        subject.codec.go_on.clear()
        # Reading a text of 500 bytes is little, but a log to go on from is replayed.
        slow = [subject.stream("mallory", text="b" * 500, continue_from=[2] * 600, seed=n) for n in range(3)]
        until(lambda: subject.codec.read == ["b"], "the first is being read")
        for name in ("ann", "mallory"):
            with subject.stream(name, text="a") as stream:
                stream.opened()
        assert subject.codec.read == ["b", "a", "a"]
        subject.codec.go_on.set()
        for stream in slow:
            assert stream.refusal().reason == "CONTINUES_PAST_END"
            stream.cut()


def test_long_prompts_are_read_by_turns(tmp_path: Path) -> None:
    with bench(tmp_path) as subject:
        subject.codec.go_on.clear()
        streams = [subject.stream("mallory", text=letter * 1000) for letter in "ab"]
        until(lambda: len(subject.codec.read) == 1, "one is being read")
        until(lambda: subject.verifier.service._admission._accounts["mallory"].sessions == 2, "both have places")
        streams += [subject.stream("mallory", text="c" * 1000), subject.stream("ann", text="z" * 1000)]
        until(lambda: subject.verifier.service._admission._sessions == 4, "all have places")
        subject.codec.go_on.set()
        for stream in streams:
            stream.opened()
            stream.cut()
        assert subject.codec.read.index("z") < subject.codec.read.index("c")
