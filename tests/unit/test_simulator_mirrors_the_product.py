"""The simulated device and session do what the real ones do, message for message."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from outrider.v1 import verifier_pb2 as pb

from cloud_verifier import sessions
from cloud_verifier.engines.base import Choices, Sampler
from cloud_verifier.text import AnswerText
from edge_client import session as riding
from edge_client.drafters.base import Candidates, Drafter, DrafterInfo
from edge_client.link import Heard
from netlab.simulator.device import Device, DeviceSettings
from netlab.simulator.link import Link
from netlab.simulator.messages import Commit, Draft
from netlab.simulator.pair import MARGIN_TOKENS, Answer
from netlab.simulator.run import PROMPT_TOKENS, Rider, _Ride, simulate
from netlab.simulator.verifier import Session
from speculation.adaptive import Adaptive
from speculation.line import VerifierLine
from speculation.pace import PATIENCE_UNLIMITED_MS, BoundedLookahead, Pace, Synchronous
from speculation.sampling import SamplingParams

# ----------------------------------------------------------------------------------------------------------------------
# The device

DRAFT_MS = 1.7  # so that nothing happens at the very moment when something else does
RTT_MS = 33.3


class Clock:
    """What the riding loop takes for `time`."""

    def __init__(self) -> None:
        self.now_ms = 0.0

    def perf_counter(self) -> float:
        return self.now_ms / 1e3


class Inbox:
    """Messages that come in at their times; waiting for one makes the time pass."""

    def __init__(self, clock: Clock, arrivals: list[tuple[float, Any]]) -> None:
        self._clock, self._arrivals = clock, arrivals

    def empty(self) -> bool:
        return not self._arrivals or self._arrivals[0][0] > self._clock.now_ms + 1e-9

    def get(self) -> Any:
        at_ms, message = self._arrivals.pop(0)
        self._clock.now_ms = max(self._clock.now_ms, at_ms)
        return message


class FakeLink:
    """Takes what the riding loop sends."""

    def __init__(self, clock: Clock, inbox: Inbox) -> None:
        self.inbox, self._clock = inbox, clock
        self.sent: list[tuple[float, int, list[int], int]] = []

    def send(self, request: pb.GenerateRequest) -> None:
        draft = request.draft
        self.sent.append((self._clock.now_ms, draft.start, list(draft.tokens), draft.known_length))


class DescribedDrafter(Drafter):
    """Guesses as the simulated device does, and takes as long."""

    def __init__(self, clock: Clock, answer: Answer, truth: Sequence[int]) -> None:
        self.info = DrafterInfo("described", 100_000, "", PROMPT_TOKENS + len(answer.hits))
        self._clock, self._answer, self._truth = clock, answer, list(truth)
        self._tokens: list[int] = []

    @property
    def length(self) -> int:
        return len(self._tokens)

    def feed(self, tokens: Sequence[int]) -> None:
        self._tokens.extend(tokens)

    def rollback(self, length: int) -> None:
        del self._tokens[length:]

    def close(self) -> None:
        pass

    def candidates(self) -> Candidates:
        self._clock.now_ms += DRAFT_MS
        index = self.length - PROMPT_TOKENS
        right = self._tokens[PROMPT_TOKENS:] == self._truth[:index] and self._answer.hits[index]
        token, confidence = self._truth[index] + (not right), self._answer.confidences[index]
        return Candidates(np.array([token, 99_999]), np.log(np.array([confidence, 1 - confidence])))


@pytest.mark.parametrize("make", [BoundedLookahead, lambda: Synchronous(5), Adaptive])
@pytest.mark.parametrize("seed", range(4))
def test_the_riding_loop_sends_what_the_simulated_device_sends(
    make: Callable[[], Pace], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    tokens = 60
    hits = [rng.random() < 0.8 for _ in range(tokens + MARGIN_TOKENS)]
    answer = Answer(tokens, hits, [rng.uniform(0.6, 0.99) for _ in hits])
    heard: list[tuple[float, Commit, float | None]] = []
    simulated: list[tuple[float, int, list[int], int]] = []

    def hear(device: Device, commit: Commit, plain: Callable[[Device, Commit], None] = Device.hear) -> None:
        plain(device, commit)
        heard.append((device._env.now, commit, device._rtt_ms))

    def send(ride: _Ride, draft: Draft, plain: Callable[[_Ride, Draft], None] = _Ride._send_draft) -> None:
        simulated.append((ride._env.now, draft.start, draft.tokens, draft.known_length))
        plain(ride, draft)

    monkeypatch.setattr(Device, "hear", hear)
    monkeypatch.setattr(_Ride, "_send_draft", send)
    rider = Rider(answer, Link.of_rtt(RTT_MS), make(), DeviceSettings(DRAFT_MS))
    result = simulate([rider]).results[0]

    clock = Clock()
    monkeypatch.setattr(riding, "time", clock)
    truth = [2 * (7919 * i % 30_000) for i in range(len(hits))]
    opened = pb.Opened(
        prompt_ids=[1] * PROMPT_TOKENS, prompt_length=PROMPT_TOKENS, max_lookahead=64, vocabulary_matches=True
    )
    opened.model_info.vocabulary_size = 100_000
    arrivals: list[tuple[float, Any]] = [(RTT_MS, Heard(pb.GenerateResponse(opened=opened), RTT_MS, None))]
    for at_ms, commit, rtt_ms in heard:
        message = pb.Commit(
            start=commit.start, tokens=commit.tokens, drafted_mask=(1 << commit.drafted) - 1,
            forward_us=round(commit.forward_ms * 1e3), queue_us=round(commit.queue_ms * 1e3),
            draft_budget=commit.budget,
        )  # fmt: skip
        arrivals.append((at_ms, Heard(pb.GenerateResponse(commit=message), at_ms, rtt_ms)))
    arrivals.append((heard[-1][0], Heard(pb.GenerateResponse(finished=pb.Finished()), heard[-1][0], None)))
    link: Any = FakeLink(clock, Inbox(clock, arrivals))
    seat = riding.DrafterSeat(DescribedDrafter(clock, answer, truth))
    loop = riding.RidingLoop(link, seat, make(), SamplingParams(temperature=0.0), 1)
    written: list[int] = []
    loop.run(lambda progress: written.extend(progress.tokens))

    assert written == truth[:tokens]
    assert [entry[1:] for entry in link.sent[: len(simulated)]] == [entry[1:] for entry in simulated]
    assert [entry[0] for entry in link.sent[: len(simulated)]] == pytest.approx([entry[0] for entry in simulated])
    assert len(link.sent) <= len(simulated) + 1  # the real loop hears of the end in a message of its own
    assert loop.ride.ttft_ms == pytest.approx(result.ttft_ms)


# ----------------------------------------------------------------------------------------------------------------------
# The session


class NoText:
    def push(self, token: int) -> str:
        return ""

    def rest(self) -> str:
        return ""


@pytest.mark.parametrize("patience_ms", [0, 12, PATIENCE_UNLIMITED_MS])
@pytest.mark.parametrize("seed", range(8))
def test_a_session_is_due_and_writes_as_the_simulated_one(seed: int, patience_ms: int) -> None:
    rng = random.Random(seed)
    prompt, truth = [9] * 40, [rng.randrange(3) for _ in range(50)]
    ours = Session(prompt, truth, patience_ms, 0.0, lambda _commit: None)
    real = sessions.Session(
        session_id="x",
        sampler=Sampler(SamplingParams(), 1, len(prompt)),
        line=VerifierLine(list(prompt)),
        text=AnswerText(NoText(), ()),
        stop_ids=frozenset(),
        max_length=len(prompt) + len(truth),
        max_lookahead=64,
        patience_ms=patience_ms,
        ready_since_s=0.0,
    )
    now_ms = 0.0
    while not ours.over:
        now_ms += rng.randrange(20)
        due_s = real.due_s(128)
        assert ours.due_ms() == (None if due_s is None else pytest.approx(due_s * 1e3))
        assert ours.reading == real.reading
        if rng.random() < 0.6:
            known = rng.randrange(len(prompt), real.line.length + 1)
            start = rng.randrange(known, real.line.length + 3)
            guesses = [
                truth[i - len(prompt)] if i < real.max_length and rng.random() < 0.8 else 7
                for i in range(start, start + rng.randrange(6))
            ]
            ours.draft(Draft(start, guesses, known, 0.0, None), now_ms, 64)
            real.line.draft(start, guesses, known, 64)
            real.nudged = real.nudged or (not guesses and known == real.line.length)
        if ours.due_ms() is None:
            ours.draft(Draft(real.line.length, [], real.line.length, 0.0, None), now_ms, 64)
            real.nudged = True
            real.line.draft(real.line.length, [], real.line.length, 64)
        positions, planned = ours.block(512, 16)
        pending = real.line.length - real.cached
        if planned is None:
            assert positions == 16 < pending
            ours.cached += positions
            real.cached += positions
        else:
            verified = real.guesses()
            assert planned == verified
            real.cached += positions
            done = real.line.length - len(prompt)
            ours.take(planned)
            real.take(verified, Choices(truth[done : done + len(verified) + 1]))
        ours.ready_ms, real.ready_since_s = now_ms, now_ms / 1e3
        assert (ours.line.log, ours.line.guesses, ours.cached) == (real.line.log, real.line.guesses, real.cached)
        assert (ours.nudged, ours.over) == (real.nudged, real.over)
    stats = real.statistics
    assert (ours.target_forwards, ours.verified_tokens, ours.accepted_tokens, ours.fills) == (
        stats.target_forwards,
        stats.verified_tokens,
        stats.accepted_tokens,
        stats.fills,
    )
