"""Promise 1 where the verifier's side of the pace is at its busiest: a tiny step budget, many sessions, devices that
change their pace, their patience and their objective in mid-answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from outrider.v1 import verifier_pb2 as pb

from edge_client.client import EdgeClient
from netlab.verifier_process import VerifierProcess
from speculation.pace.base import (
    PATIENCE_UNLIMITED_MS,
    Action,
    BoundedLookahead,
    FixedLookahead,
    News,
    Pace,
    Streaming,
    Synchronous,
    View,
)
from speculation.sampling import SamplingParams
from tests.losslessness.conftest import DEMO, make_drafter
from tests.losslessness.test_same_words import PROMPT
from tests.service.raw import Stream, opening

TOKENS, SEED, VOCABULARY = 40, 21, 2000
TEMPERATURES = (0.0, 0.8)
OBJECTIVES = (pb.OBJECTIVE_LATENCY, pb.OBJECTIVE_BALANCED, pb.OBJECTIVE_CAPACITY)
OPTIONS = {
    "roomy": [],
    "tiny": ["--step-tokens", "6", "--chunk-tokens", "4"],
    "capped": ["--step-tokens", "9", "--objective", "capacity", "--max-patience-ms", "15"],
    "llama.cpp": [],
    "llama.cpp, tiny": ["--step-tokens", "6", "--chunk-tokens", "4"],
    "llama.cpp, crowded": ["--max-model-len", "128", "--kv-cache-gib", "0.005"],  # sessions push each other out
}
Words = tuple[int, ...]


class Fickle(Pace):
    """Changes its mode at random with every commit: streaming, rounds, server-led, patient."""

    name = "fickle"
    MODES: tuple[Callable[[], Pace], ...] = (
        Streaming,
        BoundedLookahead,
        lambda: Synchronous(4),
        lambda: FixedLookahead(8, patience_ms=20),
    )

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._mode: Pace = Streaming()

    def next(self, view: View) -> Action:
        return self._mode.next(view)

    def heard(self, news: News) -> None:
        self._mode = self._random.choice(self.MODES)()
        self.patience_ms = self._mode.patience_ms


@pytest.fixture(scope="module", params=OPTIONS)
def address(request: pytest.FixtureRequest, gguf_target: Path) -> Iterator[str]:
    options = ["--threads", "1", "--max-sessions", "16", *OPTIONS[request.param]]
    target = gguf_target if request.param.startswith("llama.cpp") else DEMO / "target"
    verifier = VerifierProcess(target, options=options)
    yield f"127.0.0.1:{verifier.port}"
    verifier.stop()


def params(temperature: float) -> SamplingParams:
    return SamplingParams(temperature=temperature, max_tokens=TOKENS, ignore_eos=True)


@pytest.fixture(scope="module")
def reference(address: str) -> dict[float, Words]:
    """Plain streaming, alone. (That these words are the target's own, `test_same_words` says.)"""
    with EdgeClient(address, None, pace=Streaming) as client:
        return {t: client.generate(PROMPT, params(t), seed=SEED).token_ids for t in TEMPERATURES}


def fickle_client(address: str, temperature: float, seed: int) -> Words:
    """Our own client, with a drafter."""
    drafter = make_drafter("onnx" if seed % 3 else "garbage")
    with EdgeClient(address, drafter, pace=lambda: Fickle(seed)) as client:
        output = client.generate(PROMPT, params(temperature), seed=SEED)
        assert not output.metrics.notices
        return output.token_ids


def fickle_device(address: str, temperature: float, seed: int, right: Words) -> Words:
    """Somebody else's client: leaves its patience to the verifier or not, is right or wrong, and keeps changing."""
    rng = random.Random(seed)
    got: list[int] = []
    request = opening(
        chat=pb.ChatMessages(
            messages=[pb.ChatMessage(role=m["role"], content=[pb.ContentPart(text=str(m["content"]))]) for m in PROMPT]
        ),
        seed=SEED,
        sampling=pb.SamplingParams(temperature=temperature, max_tokens=TOKENS, ignore_eos=True),
        objective=rng.choice(OBJECTIVES),
        patience_ms=rng.choice((None, None, 0, PATIENCE_UNLIMITED_MS)),
    )
    with Stream(address, request) as stream:
        first = stream.opened().prompt_length
        while True:
            known = first + len(got)
            guesses = [t if rng.random() < 0.8 else rng.randrange(VOCABULARY) for t in right[len(got) :]][:12]
            wish = {"patience_ms": rng.choice((0, 3, PATIENCE_UNLIMITED_MS))} if rng.random() < 0.3 else {}
            confidence = bytes(rng.randrange(256) for _ in guesses)
            stream.draft(known, guesses, known, confidence=confidence, objective=rng.choice((0, *OBJECTIVES)), **wish)
            stream.draft(known, [], known)  # in case that it waits for more
            response = stream.read()
            got += response.commit.tokens
            if response.HasField("finished"):
                return tuple(got)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_in_fickle_company(address: str, reference: dict[float, Words], temperature: float) -> None:
    right = reference[temperature]
    with ThreadPoolExecutor(10) as pool:
        ours = [pool.submit(fickle_client, address, temperature, seed) for seed in range(4)]
        others = [pool.submit(fickle_device, address, temperature, seed, right) for seed in range(6)]
        words = [future.result(timeout=120) for future in (*ours, *others)]
    assert words == [right] * len(words)
