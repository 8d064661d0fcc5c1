"""The Python API: `EdgeClient` and `AsyncEdgeClient`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import queue
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Self

from outrider.v1 import verifier_pb2 as pb

from edge_client.drafters import load_drafter
from edge_client.drafters.base import Drafter
from edge_client.drafters.settings import DeviceSettings
from edge_client.errors import SessionError
from edge_client.link.channel import Channel, LinkSettings
from edge_client.link.security import Security
from edge_client.riding.answer_start import AnswerStarter, Put
from edge_client.riding.drafter_lease import DrafterLease
from edge_client.riding.offline import Ask, CheckedAnswer, Consent, compare
from edge_client.riding.paces import Paces
from edge_client.riding.shared_drafter import SharedDrafter
from edge_client.riding.vocabulary_cache import VocabularyCache
from edge_client.riding.vocabulary_matching import VocabularyMatching
from edge_client.types import OfflineAnswers, Prompt, RequestOutput, RideSettings, StreamChunk
from speculation.pace import policies
from speculation.pace.base import Objective, Pace
from speculation.pace.duty import DutyCycle
from speculation.sampling import SamplingParams
from speculation.vocabulary.vocabulary import Vocabulary

CLOSE_TIMEOUT_S = 3.0  # for the last call into a drafter


class EdgeClient:
    """Answers from a verifier, with a drafter on this device riding ahead.

    One client holds one channel and one drafter. Several threads may use it at once; the drafter serves one session at
    a time, and sessions that find it taken stream without drafts until it is their turn.
    """

    def __init__(
        self,
        verifier: str,
        drafter: str | Path | Drafter | None = None,
        *,
        model: str = "",
        pace: str | Callable[[], Pace] = policies.DEFAULT,
        objective: Objective = Objective.LATENCY,
        priority: int = 0,
        threads: int = 1,
        device: DeviceSettings | None = None,
        max_draft_duty: float = 1.0,
        security: Security | None = None,
        link: LinkSettings | None = None,
        offline_answers: OfflineAnswers | str = OfflineAnswers.NEVER,
        ask_offline: Ask | None = None,
    ) -> None:
        """verifier: HOST:PORT. drafter: what `--drafter` takes, or a Drafter; None streams plainly.

        pace: a policy by name, see `speculation.pace.policies`, or what makes one pace per session; objective
        is for the adaptive one. priority: of its sessions at a verifier that has not room for all, up to what
        that allows; higher goes first. threads: CPU threads of the drafter. device: how its model uses the
        device. max_draft_duty: most of the time, from 0 to 1, that it may draft. security: TLS and the API key.
        offline_answers: whether the drafter may answer alone when the verifier cannot be reached: never, auto,
        or ask, which calls `ask_offline` on the session's thread. Raises ValueError for a bad address, policy,
        share or certificate. A drafter that cannot be loaded is no error: `notices` says so and answers stream
        plainly.
        """
        self.notices: list[str] = []
        self._model = model
        answers = OfflineAnswers(offline_answers)
        Consent(answers, ask_offline)  # before anything is loaded
        paces = Paces(pace, objective)
        self._channel = Channel(verifier, security=security, settings=link or LinkSettings())
        duty = DutyCycle(max_draft_duty) if max_draft_duty != 1.0 else None
        self._drafter = self._load(drafter, threads, device, duty)
        if answers is not OfflineAnswers.NEVER and not self.can_answer_alone:
            self.notices.append("without a drafter that has a model, this device cannot answer when it is offline")
        self._matching: VocabularyMatching | None = None
        if self._drafter is not None and not self._drafter.lease.speaks_any_vocabulary:
            self._matching = VocabularyMatching(self._channel, self._drafter.lease.drafter, self.notices)
        self._answers = AnswerStarter(
            self._channel,
            paces,
            self._drafter,
            self._matching,
            model=model,
            priority=priority,
            offline_answers=answers,
            ask_offline=ask_offline,
        )

    def _load(
        self, drafter: str | Path | Drafter | None, threads: int, device: DeviceSettings | None, duty: DutyCycle | None
    ) -> SharedDrafter | None:
        settings = dataclasses.replace(device or DeviceSettings(), keeps_conversations=True)
        try:
            loaded = (
                drafter if isinstance(drafter, Drafter) else load_drafter(drafter, threads=threads, settings=settings)
            )
            shared = SharedDrafter(DrafterLease(loaded, duty)) if loaded is not None else None
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # whatever a runtime does with a broken file, a panic in Rust too
            self.notices.append(f"no drafter: {error}; answers stream from the verifier alone")
            return None
        self.notices += loaded.info.notices if loaded is not None else ()
        return shared

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        seed: int | None = None,
        ride: RideSettings | None = None,
        continues: RequestOutput | None = None,
    ) -> RequestOutput:
        """The complete answer to a prompt: text, token ids, or messages with role and content.

        seed: an unsigned 64-bit number; the same seed gives the same words. Default: random. ride: what this answer
        does otherwise than the client's others. continues: what came of an answer to this prompt that broke off
        (`SessionError.so_far`), or was cancelled; it goes on from those words, with their seed, and is returned whole.
        Raises SessionError, and ValueError for an unusable prompt.

        A verifier that fails on this answer alone is asked again some times, from the words that have come.
        """
        output = None
        for chunk in self.stream(prompt, params, seed=seed, ride=ride, continues=continues):
            output = chunk.output
        assert output is not None
        return output

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        seed: int | None = None,
        ride: RideSettings | None = None,
        continues: RequestOutput | None = None,
    ) -> Generator[StreamChunk, None, None]:
        """The answer as it grows; closing the iterator early cancels the session. Raises as `generate` does.

        Of one that `continues`, only what is new, from the end of its text on.
        """
        return self._stream(
            lambda put: self._answers.start(prompt, params, _seed_of(seed, continues), put, ride, continues)
        )

    def _stream(self, start: Callable[[Put], Callable[[], None]]) -> Generator[StreamChunk, None, None]:
        chunks: queue.SimpleQueue[StreamChunk | BaseException] = queue.SimpleQueue()
        cancel = start(chunks.put)
        finished = False
        try:
            while not finished:
                chunk = chunks.get()
                if isinstance(chunk, BaseException):
                    finished = True
                    raise chunk
                finished = chunk.output is not None
                yield chunk
        finally:
            if not finished:
                cancel()

    def check(
        self, prompt: Prompt, output: RequestOutput, params: SamplingParams | None = None, *, model: str = ""
    ) -> CheckedAnswer:
        """What the verifier makes of an answer that the device finished alone; prompt and params as it was asked for.

        model: that was asked for, if not the client's. The verifier goes on from what it had committed, with the same
        seed; the device's words are its drafts. Raises SessionError, and ValueError if no part of the answer is the
        device's own.
        """
        checked = None
        for chunk in self.check_stream(prompt, output, params, model=model):
            checked = chunk.output
        assert checked is not None
        return compare(output, checked)

    def check_stream(
        self, prompt: Prompt, output: RequestOutput, params: SamplingParams | None = None, *, model: str = ""
    ) -> Generator[StreamChunk, None, None]:
        """As `check`, as it comes: what the verifier says after the committed part. See `offline.compare`.

        model: that was asked for, if not the client's.
        """
        return self._stream(lambda put: self._start_check(prompt, params, output, put, model))

    @property
    def has_drafter(self) -> bool:
        """Whether a drafter was loaded; how it fares is in the answers' metrics."""
        return self._drafter is not None

    @property
    def can_answer_alone(self) -> bool:
        """Whether the drafter has a model that could answer without the verifier, if it may."""
        return self._drafter is not None and self._drafter.can_answer_alone

    def model_info(self, timeout_s: float = 10.0, *, model: str = "") -> pb.GetModelInfoResponse:
        """What the verifier says of a model; by default of the client's. Raises SessionError."""
        return self._channel.model_info(model or self._model, timeout_s)

    def models(self, timeout_s: float = 10.0) -> Sequence[pb.GetModelInfoResponse]:
        """What the verifier serves, the client's model first. Raises SessionError, also if that is not served."""
        models = list(self._channel.models(timeout_s))
        if self._model:
            first = self.model_info(timeout_s)
            models = [first, *(info for info in models if info.model != first.model)]
        return models

    def vocabulary(self, info: pb.GetModelInfoResponse | None = None) -> Vocabulary:
        """A target's tokens, from this user's cache or else from the verifier.

        info: what the verifier said of the target; by default of the client's. Raises SessionError, and VocabularyError
        for one that is not what it claims to be.
        """
        return VocabularyCache().get(self._channel, info or self.model_info())

    def close(self) -> None:
        """Close the channel and free the drafter. Running sessions end with an error.

        A drafter that hangs is left as it is after some seconds.
        """
        self._channel.close()
        if self._drafter is not None:
            self._drafter.close(CLOSE_TIMEOUT_S, self._matching.ended if self._matching is not None else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_check(
        self, prompt: Prompt, params: SamplingParams | None, output: RequestOutput, put: Put, model: str
    ) -> Callable[[], None]:
        if output.offline is None:
            raise ValueError("no part of this answer is the device's own: there is nothing to check")
        ride = RideSettings(model=model, offline_answers=OfflineAnswers.NEVER)
        return self._answers.start(prompt, params, output.seed, put, ride, output)


def _seed_of(seed: int | None, continues: RequestOutput | None) -> int | None:
    """Raises ValueError for an answer that cannot be gone on with, or not with this seed."""
    if continues is None:
        return seed
    if continues.offline is not None:
        raise ValueError("the device finished this answer alone; `check` asks the verifier about it")
    if seed not in (None, continues.seed):
        raise ValueError(f"this answer began with seed {continues.seed} and goes on with no other")
    return continues.seed


class AsyncEdgeClient:
    """`EdgeClient` for asyncio: the same names, awaited."""

    def __init__(
        self, verifier: str | EdgeClient, drafter: str | Path | Drafter | None = None, **settings: Any
    ) -> None:
        """As `EdgeClient`; or of a client that there is."""
        self._client = verifier if isinstance(verifier, EdgeClient) else EdgeClient(verifier, drafter, **settings)

    @property
    def notices(self) -> Sequence[str]:
        """What a person should know, such as a drafter that could not be loaded."""
        return self._client.notices

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        seed: int | None = None,
        ride: RideSettings | None = None,
        continues: RequestOutput | None = None,
    ) -> RequestOutput:
        """As `EdgeClient.generate`."""
        output = None
        async for chunk in self.stream(prompt, params, seed=seed, ride=ride, continues=continues):
            output = chunk.output
        assert output is not None
        return output

    async def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        seed: int | None = None,
        ride: RideSettings | None = None,
        continues: RequestOutput | None = None,
    ) -> AsyncGenerator[StreamChunk, None]:
        """As `EdgeClient.stream`; leaving the iteration early cancels the session."""
        async with contextlib.aclosing(
            self._stream(
                lambda put: self._client._answers.start(prompt, params, _seed_of(seed, continues), put, ride, continues)
            )
        ) as chunks:
            async for chunk in chunks:
                yield chunk

    async def check(
        self, prompt: Prompt, output: RequestOutput, params: SamplingParams | None = None, *, model: str = ""
    ) -> CheckedAnswer:
        """As `EdgeClient.check`."""
        checked = None
        async for chunk in self._stream(lambda put: self._client._start_check(prompt, params, output, put, model)):
            checked = chunk.output
        assert checked is not None
        return compare(output, checked)

    async def _stream(self, start: Callable[[Put], Callable[[], None]]) -> AsyncGenerator[StreamChunk, None]:
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[StreamChunk | BaseException] = asyncio.Queue()
        cancel = start(lambda chunk: _put_soon(loop, chunks, chunk))
        finished = False
        try:
            while not finished:
                chunk = await chunks.get()
                if isinstance(chunk, BaseException):
                    finished = True
                    raise chunk
                finished = chunk.output is not None
                yield chunk
        finally:
            if not finished:
                cancel()

    @property
    def has_drafter(self) -> bool:
        """As `EdgeClient.has_drafter`."""
        return self._client.has_drafter

    @property
    def can_answer_alone(self) -> bool:
        """As `EdgeClient.can_answer_alone`."""
        return self._client.can_answer_alone

    async def model_info(self, timeout_s: float = 10.0, *, model: str = "") -> pb.GetModelInfoResponse:
        """As `EdgeClient.model_info`."""
        return await asyncio.to_thread(self._client.model_info, timeout_s, model=model)

    async def models(self, timeout_s: float = 10.0) -> Sequence[pb.GetModelInfoResponse]:
        """As `EdgeClient.models`."""
        return await asyncio.to_thread(self._client.models, timeout_s)

    async def vocabulary(self, info: pb.GetModelInfoResponse | None = None) -> Vocabulary:
        """As `EdgeClient.vocabulary`."""
        return await asyncio.to_thread(self._client.vocabulary, info)

    async def close(self) -> None:
        """As `EdgeClient.close`."""
        await asyncio.to_thread(self._client.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _put_soon(
    loop: asyncio.AbstractEventLoop,
    chunks: asyncio.Queue[StreamChunk | BaseException],
    chunk: StreamChunk | BaseException,
) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for the answer any more
        loop.call_soon_threadsafe(chunks.put_nowait, chunk)


__all__ = ["AsyncEdgeClient", "EdgeClient", "RequestOutput", "SamplingParams", "SessionError", "StreamChunk"]
