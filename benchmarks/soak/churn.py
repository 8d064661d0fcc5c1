"""Devices that come and go: what they ask, what becomes of their sessions, and whether the words were right."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from outrider.v1 import verifier_pb2 as pb
from outrider.v1 import verifier_pb2_grpc as pb_grpc

from benchmarks.load.wire import write
from netlab.prompts import OPENINGS

FATES = ("answered", "cancelled", "cut and resumed", "cut for good", "refused")
LEAST_TOKENS, MOST_TOKENS = 16, 192
GUESSES = 4
SEEDS = 4  # of each question: answers that do not fit into the cache of beginnings all together


@dataclass(frozen=True)
class Question:
    """What is asked, and what an undisturbed verifier said to it."""

    opening: pb.Open
    words: Sequence[int]


def opening(text: str, seed: int, tokens: int) -> pb.Open:
    """A session's Open."""
    opened = pb.Open(protocol_version=1, seed=seed, want_text=True)
    opened.chat.messages.add(role="user", content=[pb.ContentPart(text=text)])
    opened.sampling.temperature, opened.sampling.max_tokens, opened.sampling.ignore_eos = 0.8, tokens, True
    return opened


class Device:
    """One of a principal. `ride` is one stream."""

    def __init__(self, address: str, key: str, seed: int = 0) -> None:
        self._channel = grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        self._stub: Any = pb_grpc.VerifierServiceStub(self._channel)
        self._key = key
        self.rng = random.Random(seed)
        self.prompt_length, self.session_id = 0, ""

    async def close(self) -> None:
        """Leave."""
        await self._channel.close()

    async def ride(
        self,
        asked: pb.Open,
        known: Sequence[int] = (),
        text: Sequence[int] = (),
        *,
        leaves_at: int | None = None,
        cancels: bool = False,
        key: str | None = None,
    ) -> list[int]:
        """Words until the answer ends, or until there are so many; then cancel, or just go. Raises AioRpcError.

        known: words from before. text: what to guess.
        """
        call = self._stub.Generate(metadata=(("authorization", f"Bearer {key or self._key}"),))
        words = list(known)
        try:
            await call.wait_for_connection()
            await write(call, pb.GenerateRequest(open=asked))
            while (response := await call.read()) is not grpc.aio.EOF:
                kind = response.WhichOneof("message")
                if kind == "opened":
                    self.session_id, self.prompt_length = response.opened.session_id, response.opened.prompt_length
                elif kind == "commit":
                    words += response.commit.tokens
                    if leaves_at is not None and len(words) >= leaves_at:
                        if not cancels:
                            return words
                        leaves_at = None
                        await write(call, pb.GenerateRequest(cancel=pb.Cancel()))
                    elif text:
                        await write(call, pb.GenerateRequest(draft=self._draft(words, text)))
        finally:
            call.cancel()
        return words

    def _draft(self, words: Sequence[int], text: Sequence[int]) -> pb.Draft:
        """Some guesses, of which the last is right every other time."""
        guesses = list(text[len(words) : len(words) + GUESSES])
        if guesses and self.rng.random() < 0.5:
            guesses[-1] ^= 1
        start = self.prompt_length + len(words)
        return pb.Draft(start=start, tokens=guesses, known_length=start)


async def questions(address: str, key: str) -> list[Question]:
    """All of them, each answered once without disturbance."""
    device = Device(address, key)
    asked = [opening(text, seed, MOST_TOKENS) for text, seed in itertools.product(OPENINGS, range(SEEDS))]
    found = [
        Question(one, await words) for one, words in [(one, asyncio.ensure_future(device.ride(one))) for one in asked]
    ]
    await device.close()
    return found


class Churn:
    """One device, session after session. fates: what became of them; wrong: of them, with other words; cut: streams
    that it broke."""

    def __init__(self, device: Device, asked: Sequence[Question]) -> None:
        self._device, self._asked = device, asked
        self.fates: Counter[str] = Counter()
        self.wrong = self.cut = 0

    async def run(self, until_s: float) -> None:
        """Until then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until_s):
                for number in itertools.count(self._device.rng.randrange(len(FATES))):
                    fate = FATES[number % len(FATES)]
                    await (self._refused() if fate == "refused" else self._session(fate))
                    self.fates[fate] += 1
        await self._device.close()

    async def _session(self, fate: str) -> None:
        device, question = self._device, self._device.rng.choice(self._asked)
        tokens = device.rng.randint(LEAST_TOKENS, MOST_TOKENS)
        expected = list(question.words[:tokens])
        asked = pb.Open()
        asked.CopyFrom(question.opening)
        asked.sampling.max_tokens = tokens
        leaves_at = None if fate == "answered" else device.rng.randint(1, tokens - 1)
        words = await device.ride(asked, (), question.words, leaves_at=leaves_at, cancels=fate == "cancelled")
        self.cut += fate.startswith("cut")
        if fate == "cut and resumed":
            known = device.prompt_length + len(words)
            again = pb.Open(protocol_version=1, resume=pb.Resume(session_id=device.session_id, known_length=known))
            try:
                words = await device.ride(again, words, question.words)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                asked.continue_from.extend(words)  # its lease has ended
                words = await device.ride(asked, words, question.words)
        whole = fate in ("answered", "cut and resumed")
        self.wrong += words != (expected if whole else expected[: len(words)])

    async def _refused(self) -> None:
        """By each of what a verifier says no to most."""
        rng = self._device.rng
        nonsense = pb.Open(protocol_version=1, model=f"model {rng.random()}", text="hello")
        for asked, key, code in (
            (nonsense, None, grpc.StatusCode.NOT_FOUND),
            (self._asked[0].opening, f"outr_{rng.random()}", grpc.StatusCode.UNAUTHENTICATED),
            (pb.Open(protocol_version=1, text="hello " * 4 * MOST_TOKENS), None, grpc.StatusCode.OUT_OF_RANGE),
        ):
            try:
                await self._device.ride(asked, key=key)
            except grpc.aio.AioRpcError as error:
                self.wrong += error.code() is not code
            else:
                self.wrong += 1
