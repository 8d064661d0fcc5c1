"""The Python API: `EdgeClient` and `AsyncEdgeClient`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import queue
import secrets
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from outrider.v1 import verifier_pb2 as pb

from edge_client.drafters import load_drafter
from edge_client.drafters.base import Drafter
from edge_client.drafters.settings import DeviceSettings
from edge_client.errors import SessionError
from edge_client.link.channel import Channel, LinkSettings
from edge_client.link.inbox import Callback
from edge_client.link.security import Security
from edge_client.link.session_link import SessionLink
from edge_client.riding.answer import ALONE_DEADLINE_S, AnswerRun
from edge_client.riding.drafter_lease import DrafterLease
from edge_client.riding.drafter_queue import DrafterQueue
from edge_client.riding.offline import Ask, CheckedAnswer, Consent, ReplayDrafter, compare
from edge_client.riding.riding_loop import RidingLoop
from edge_client.riding.vocabulary_cache import VocabularyCache
from edge_client.riding.vocabulary_matching import VocabularyMatching
from edge_client.types import OfflineAnswers, Prompt, RequestOutput, RideSettings, StreamChunk
from speculation.pace import policies
from speculation.pace.base import Objective, Pace, Streaming
from speculation.pace.duty import DutyCycle
from speculation.pace.observed import Observed
from speculation.sampling import SamplingParams
from speculation.vocabulary.vocabulary import Vocabulary

log = logging.getLogger(__name__)

PROTOCOL_VERSION = 1
CLOSE_TIMEOUT_S = 3.0  # for the last call into a drafter
SOON_S = 0.5  # a call into a drafter that has taken longer may take for ever
SMALL_OPEN_BYTES = 1024
Put = Callable[[StreamChunk | BaseException], None]
OBJECTIVES = {
    Objective.LATENCY: pb.OBJECTIVE_LATENCY,
    Objective.BALANCED: pb.OBJECTIVE_BALANCED,
    Objective.CAPACITY: pb.OBJECTIVE_CAPACITY,
}


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
        self._model, self._priority = model, priority
        self._offline = Consent(OfflineAnswers(offline_answers), ask_offline)
        self._pace = policies.find(pace, objective) if isinstance(pace, str) else pace
        duty = DutyCycle(max_draft_duty) if max_draft_duty != 1.0 else None
        # Without a drafter nothing will ever be drafted: the verifier need not wait for it.
        self._pace_without_drafter = Streaming if isinstance(pace, str) else pace
        self._channel = Channel(verifier, security=security, settings=link or LinkSettings())
        self._lease = self._load(drafter, threads, device, duty)
        self._drafter_queue = DrafterQueue()  # at the lease
        if self._consent(self._offline.answers) != self._offline:
            self.notices.append("without a drafter that has a model, this device cannot answer when it is offline")
        matched = self._lease is not None and not self._lease.speaks_any_vocabulary
        self._matching = (
            VocabularyMatching(self._channel, self._lease.drafter, self.notices) if self._lease and matched else None
        )

    def _load(
        self, drafter: str | Path | Drafter | None, threads: int, device: DeviceSettings | None, duty: DutyCycle | None
    ) -> DrafterLease | None:
        settings = dataclasses.replace(device or DeviceSettings(), keeps_conversations=True)
        try:
            loaded = (
                drafter if isinstance(drafter, Drafter) else load_drafter(drafter, threads=threads, settings=settings)
            )
        except Exception as error:  # whatever a runtime does with a broken file, answers must still come
            self.notices.append(f"no drafter: {error}; answers stream from the verifier alone")
            return None
        if loaded is None:
            return None
        self.notices += loaded.info.notices
        return DrafterLease(loaded, duty)

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

        Of one that `continues`, only what is new; what it had in `held_text` is told again.
        """
        return self._stream(lambda put: self._start(prompt, params, _seed_of(seed, continues), put, ride, continues))

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
        return self._lease is not None

    @property
    def can_answer_alone(self) -> bool:
        """Whether the drafter has a model that could answer without the verifier, if it may."""
        return self._lease is not None and self._lease.drafter.speaker() is not None

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
        if self._matching is not None:
            self._matching.close()
        if self._lease is not None:
            if self._drafter_queue.take(self, timeout_s=CLOSE_TIMEOUT_S):  # the last rides end
                self._lease.drafter.close()
            else:  # freeing what a runtime is at work on would kill the process
                log.warning("the drafter has not answered for %.0f s; its memory stays taken", CLOSE_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- one session -------------------------------------------------------------------------------------------------

    def _start_check(
        self, prompt: Prompt, params: SamplingParams | None, output: RequestOutput, put: Put, model: str = ""
    ) -> Callable[[], None]:
        if output.offline is None:
            raise ValueError("no part of this answer is the device's own: there is nothing to check")
        ride = RideSettings(model=model, offline_answers=OfflineAnswers.NEVER)
        return self._start(prompt, params, output.seed, put, ride, output)

    def _start(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        seed: int | None,
        put: Put,
        settings: RideSettings | None = None,
        before: RequestOutput | None = None,
    ) -> Callable[[], None]:
        """Start a session on a thread of its own; returns what cancels it. before: the answer to be checked, if it has
        a part of the device's own, or to be gone on with."""
        params, settings = params or SamplingParams(), settings or RideSettings()
        seed = secrets.randbits(64) if seed is None else seed
        consent = self._consent(settings.offline_answers or self._offline.answers)
        if before is not None and before.held_text:  # the verifier tells it again
            before = dataclasses.replace(before, text=before.text.removesuffix(before.held_text), held_text="")
        wanted = self._lease if settings.drafts else None
        who = object()
        lease = wanted if wanted is not None and self._drafter_queue.take(who) else None
        link: SessionLink | None = None
        loop: RidingLoop | None = None
        try:
            pace, own_pace = self._pace_of(settings, drafts=lease is not None or self._free_soon(wanted))
            request = self._open_request(prompt, params, seed, pace, wanted, settings.model or self._model)
            part = before.offline if before is not None else None
            if before is not None:
                request.continue_from.extend(before.token_ids)
                request.prompt_fingerprint = before.prompt_fingerprint
            target = part.target if part is not None else before.target if before is not None else ""
            link = SessionLink(self._channel, request, target)
            answering = AnswerRun(prompt, params, seed, link, put, consent, self._alone, before)
            drafting = lease
            if lease is not None and part is not None and part.of_log:
                drafting = DrafterLease(ReplayDrafter(part, answering.committed_length))
            if wanted is not None or not isinstance(pace, Streaming):
                match = self._matching.ask if self._matching else None
                loop = answering.loop = RidingLoop(
                    link, drafting, pace, params, seed, match, ride=answering.ride, answered=request.continue_from
                )
                loop.start(lambda: self._drafter_queue.leave(who))
                if wanted is not None and lease is None and part is None:
                    offer = functools.partial(self._offer, loop, wanted, settings, own_pace=own_pace)
                    self._drafter_queue.ask(who, offer)
            self._follow(answering, link, put, who, keeps_diary=settings.diary is not None)
        except BaseException:
            if loop is not None and loop.started:
                loop.stop()  # and leaves the drafter
            else:
                self._drafter_queue.leave(who)
            if link is not None:
                link.close()
            raise
        return answering.cancel

    def _follow(
        self, answering: AnswerRun, link: SessionLink, put: Put, who: object, *, keeps_diary: bool = False
    ) -> None:
        """Follow the answer on a thread of its own. keeps_diary: it is to be complete when the answer is."""

        def follow() -> None:
            last: StreamChunk | BaseException
            try:
                last = answering.run()
            except BaseException as error:
                last = error
            link.close()
            # The drafter may be within a call, which nobody waits for; whoever asks next is offered it after.
            self._drafter_queue.leaving(who)
            if keeps_diary and answering.loop is not None:
                answering.loop.ended.wait(CLOSE_TIMEOUT_S)
            put(last)

        threading.Thread(target=follow, name="outrider-ride", daemon=True).start()

    def _pace_of(self, settings: RideSettings, *, drafts: bool) -> tuple[Pace, bool]:
        """The pace of an answer, and whether it is the one to ride with once there is a drafter."""
        pace = self._pace() if drafts else self._pace_without_drafter() if settings.drafts else Streaming()
        own = drafts or self._pace_without_drafter is not Streaming
        return (Observed(pace, settings.diary) if settings.diary is not None else pace), own

    def _free_soon(self, lease: DrafterLease | None) -> bool:
        """Whether the drafter is as good as free: it will be offered within a moment."""
        return lease is not None and self._drafter_queue.free_soon and lease.busy_s < SOON_S

    def _consent(self, answers: OfflineAnswers) -> Consent:
        """Raises ValueError if somebody is to be asked and there is nobody."""
        return Consent(answers if self.can_answer_alone else OfflineAnswers.NEVER, self._offline.ask)

    def _offer(self, loop: RidingLoop, lease: DrafterLease, settings: RideSettings, *, own_pace: bool) -> None:
        """Tell a session that began without the drafter that it has it now."""
        pace = None if own_pace else self._pace_of(settings, drafts=True)[0]
        loop.inbox.put(Callback(lambda: loop.attach_drafter(lease, pace)))

    @contextlib.contextmanager
    def _alone(self, given_up: Callable[[], bool]) -> Iterator[DrafterLease | None]:
        """The drafter's own model, for whoever writes without the verifier; called and left on one thread."""
        who = object()
        try:
            with self._own_model(who, given_up) as lease:
                yield lease
        finally:
            self._drafter_queue.leave(who)

    @contextlib.contextmanager
    def _own_model(self, who: object, given_up: Callable[[], bool]) -> Iterator[DrafterLease | None]:
        lease = self._lease
        self._drafter_queue.ask(who, lambda: None)
        while not self._drafter_queue.take(who, timeout_s=0.1):
            if given_up() or (lease is not None and lease.busy_s > ALONE_DEADLINE_S):
                yield None
                return
        model = lease.drafter.speaker() if lease is not None else None
        if lease is None or model is None:
            yield None
        elif model is lease.drafter:
            yield lease
        else:
            lease.rollback(0)
            model.rollback(0)
            try:
                yield DrafterLease(model)
            finally:
                model.rollback(0)

    def _open_request(
        self, prompt: Prompt, params: SamplingParams, seed: int, pace: Pace, lease: DrafterLease | None, model: str
    ) -> pb.Open:
        request = pb.Open(
            protocol_version=PROTOCOL_VERSION,
            model=model,
            sampling=sampling_message(params),
            seed=seed,
            objective=OBJECTIVES[pace.objective],
            priority=self._priority,
            patience_ms=pace.patience_ms,
            drafter_vocabulary_fingerprint=lease.drafter.info.vocabulary_fingerprint if lease else "",
            want_prompt_ids=lease is not None,
            want_text=True,
            incremental=True,
        )
        if isinstance(prompt, str):
            request.text = prompt
        elif all(isinstance(item, int) for item in prompt):
            request.prompt_ids.ids.extend(prompt)  # type: ignore[arg-type]
        else:
            for message in prompt:
                if not hasattr(message, "keys") or set(message) != {"role", "content"}:  # type: ignore[arg-type]
                    raise ValueError(f"a message needs exactly role and content, not {message!r}")
                part = pb.ContentPart(text=message["content"])  # type: ignore[index]
                request.chat.messages.add(role=message["role"], content=[part])  # type: ignore[index]
        # Without a drafter they are for opening again, whatever a template then makes of it: worth few bytes.
        request.want_prompt_ids |= not request.HasField("prompt_ids") and request.ByteSize() <= SMALL_OPEN_BYTES
        return request


def _seed_of(seed: int | None, continues: RequestOutput | None) -> int | None:
    """Raises ValueError for an answer that cannot be gone on with, or not with this seed."""
    if continues is None:
        return seed
    if continues.offline is not None:
        raise ValueError("the device finished this answer alone; `check` asks the verifier about it")
    if seed not in (None, continues.seed):
        raise ValueError(f"this answer began with seed {continues.seed} and goes on with no other")
    return continues.seed


def sampling_message(params: SamplingParams) -> pb.SamplingParams:
    """Sampling parameters as the contract's message."""
    return pb.SamplingParams(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        logit_bias=params.logit_bias,
        max_tokens=params.max_tokens,
        stop=params.stop,
        stop_ids=params.stop_ids,
        ignore_eos=params.ignore_eos,
        logprobs=params.logprobs,
    )


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
                lambda put: self._client._start(prompt, params, _seed_of(seed, continues), put, ride, continues)
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
