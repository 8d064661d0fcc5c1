"""Devices that ask one answer after the other while faults befall their link and their verifier."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from edge_client.client import EdgeClient
from edge_client.drafters import load_drafter
from edge_client.errors import SessionError
from edge_client.link.channel import LinkSettings
from netlab.experiments.rig import DEMO
from netlab.prompts import OPENINGS
from speculation.sampling import SamplingParams
from tests.harness import MockDrafter

SEEDS = (11, 12, 13)
TOKENS = (8, 25, 60)
# Impatient, so that a link that died without a sign is found out soon; and talkative, so that pings fly.
LINK = LinkSettings(connect_timeout_s=60.0, reconnect_timeout_s=60.0, quiet_s=0.02, waiting_s=0.3, stalled_s=0.8)


@dataclass(frozen=True)
class Question:
    """What is asked: the answer is a function of it."""

    prompt: str
    params: SamplingParams
    seed: int


def questions(target: str, seed: int) -> list[Question]:
    """Of every kind of sampling, for devices of each seed."""
    prompts = ("abc", "hello", "XYZ789") if target == "mock" else tuple(f"<|user|>{text}" for text in OPENINGS[:3])
    samplings = [
        SamplingParams(temperature=0.0, ignore_eos=True),
        SamplingParams(temperature=0.8),
        SamplingParams(temperature=1.0, top_p=0.9, presence_penalty=0.5),
        SamplingParams(temperature=0.7, stop=("e",), logprobs=2),
    ]
    return [
        Question(prompt, replace(params, max_tokens=tokens), seed)
        for prompt, tokens in zip(prompts, TOKENS, strict=True)
        for params in samplings
    ]


def clients(target: str, address: str, count: int) -> Iterator[tuple[EdgeClient, int]]:
    """Devices with drafters good, bad, failing and none, and the seed that each asks with."""
    for index in range(count):
        seed = SEEDS[index % len(SEEDS)]
        kind = index % 4
        drafter: Any = None
        if target == "demo" and kind:
            drafter = load_drafter("ngram" if kind == 1 else DEMO / "drafter-onnx")
        elif kind:
            accuracy, fail_at = ((0.8, None), (0.3, None), (0.9, 20))[kind - 1]
            drafter = MockDrafter(index, seed, accuracy, fail_at)
        yield EdgeClient(address, drafter, pace="adaptive" if index % 3 else "sync:4", link=LINK), seed


class Tally:
    """What came of all sessions; safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heard = threading.Condition(self._lock)
        self.tokens = 0
        self.outcomes: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.wrong: list[str] = []

    def heard(self, tokens: int) -> None:
        """Some device heard so many tokens."""
        with self._heard:
            self.tokens += tokens
            self._heard.notify_all()

    def wait_for(self, tokens: int, timeout_s: float) -> bool:
        """Wait until devices have heard so many more."""
        with self._heard:
            goal = self.tokens + tokens
            return self._heard.wait_for(lambda: self.tokens >= goal, timeout_s)

    def ended(self, outcome: str, wrong: str = "") -> None:
        """A session ended."""
        with self._lock:
            self.outcomes[outcome] += 1
            if wrong:
                self.wrong.append(wrong)

    def failed(self, error: SessionError) -> None:
        """A session ended with an error."""
        with self._lock:
            self.errors[f"{error.code} {error.reason}"] += 1


class Worker(threading.Thread):
    """One device. It compares every answer with what an undisturbed run said."""

    def __init__(
        self,
        client: EdgeClient,
        asked: list[tuple[Question, tuple[int, ...]]],
        tally: Tally,
        rng: random.Random,
    ) -> None:
        """asked: questions and their answers."""
        super().__init__(daemon=True)
        self._client, self._asked, self._tally, self._rng = client, asked, tally, rng
        self._stopping = threading.Event()

    def run(self) -> None:
        """Ask until told to stop."""
        try:
            while not self._stopping.is_set():
                self._ask(*self._rng.choice(self._asked))
        except Exception as error:
            self._tally.ended("broke", f"a device broke: {error!r}")

    def stop(self) -> None:
        """Ask nothing more."""
        self._stopping.set()

    def _ask(self, question: Question, expected: tuple[int, ...]) -> None:
        leaves_after = self._rng.randint(1, 20) if self._rng.random() < 0.1 else len(expected) + 1
        tokens: list[int] = []
        outcome = "whole"
        answering = self._client.stream(question.prompt, question.params, seed=question.seed)
        try:
            for chunk in answering:
                tokens += chunk.token_ids
                self._tally.heard(len(chunk.token_ids))
                if chunk.output is not None and chunk.output.metrics.failures:
                    outcome = "mended"
                if len(tokens) >= leaves_after:
                    outcome = "cancelled"
                    break
        except SessionError as error:
            self._tally.failed(error)
            outcome = "continued"
            tokens = self._continue(question, error)
        finally:
            answering.close()
        right = tuple(tokens) == (expected[: len(tokens)] if outcome == "cancelled" else expected)
        wrong = "" if right else f"{question}: {tokens} after {outcome}, not {expected}"
        self._tally.ended(outcome if right else "wrong", wrong)

    def _continue(self, question: Question, error: SessionError) -> list[int]:
        """What people do with an error that can be continued from: ask again with what has come."""
        so_far = error.so_far
        for _ in range(20):
            try:
                output = self._client.generate(question.prompt, question.params, seed=question.seed, continues=so_far)
            except SessionError as again:
                so_far = again.so_far or so_far
            else:
                return list(output.token_ids)
        raise RuntimeError("twenty faults in a row befell what continues one answer")
