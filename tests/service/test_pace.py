"""The verifier's side of the pace over real gRPC: full steps, objectives, patience. None of it changes a word."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from outrider.v1 import verifier_pb2 as pb

from cloud_verifier.scheduling.scheduler import SchedulerSettings
from speculation.pace.base import PATIENCE_UNLIMITED_MS, Objective
from tests.harness import InProcessVerifier
from tests.mock_engine import VOCABULARY_SIZE, MockEngine, answer
from tests.service.engines import GatedEngine
from tests.service.raw import SEED, Stream, opening, until
from tests.service.test_sessions import START, WORDS, ask, inside, whole

OBJECTIVES = (pb.OBJECTIVE_LATENCY, pb.OBJECTIVE_BALANCED, pb.OBJECTIVE_CAPACITY)


# -- what is granted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [pb.OBJECTIVE_UNSPECIFIED, *OBJECTIVES])
def test_a_device_is_told_what_was_granted(asked: pb.Objective) -> None:
    with (
        InProcessVerifier(MockEngine(), objective=Objective.BALANCED, max_patience_ms=40) as verifier,
        Stream(verifier.address, ask(objective=asked)) as stream,
    ):
        opened = stream.opened()
        assert opened.objective == (asked or pb.OBJECTIVE_BALANCED)
        assert opened.max_patience_ms == 40


def test_unlimited_patience_ends_at_the_cap_and_no_other_way() -> None:
    with InProcessVerifier(MockEngine(), max_patience_ms=0) as verifier:
        rest = whole(verifier, ask(waiting=True))
        assert rest.tokens == WORDS
        assert rest.finished.statistics.fills == len(WORDS)
    with InProcessVerifier(MockEngine()) as verifier, Stream(verifier.address, ask(waiting=True)) as stream:
        assert stream.opened().max_patience_ms == PATIENCE_UNLIMITED_MS
        stream.tokens(1)
        until(lambda: inside(verifier).due_s(128) is None, "it waits")


def test_a_draft_hands_patience_to_the_verifier_and_takes_it_back() -> None:
    with InProcessVerifier(MockEngine()) as verifier, Stream(verifier.address, ask(waiting=True)) as stream:
        stream.opened()
        stream.tokens(1)
        patience = inside(verifier).patience
        for fields, expected in (
            ({"objective": pb.OBJECTIVE_CAPACITY, "patience_ms": PATIENCE_UNLIMITED_MS}, PATIENCE_UNLIMITED_MS),
            ({"patience_ms": 50_000}, 50_000),
            ({"objective": pb.OBJECTIVE_LATENCY}, None),
        ):
            stream.draft(START, [], START, **fields)
            until(lambda expected=expected: patience.asked_ms == expected, "it is taken")  # type: ignore[misc]
        assert stream.rest().tokens == WORDS[1:]


def test_an_objective_that_does_not_exist_is_refused_in_a_draft_too() -> None:
    with InProcessVerifier(MockEngine()) as verifier, Stream(verifier.address, ask(waiting=True)) as stream:
        stream.opened()
        stream.draft(START, [], START, objective=9)
        assert stream.refusal()[:2] == ("INVALID_ARGUMENT", "OBJECTIVE")


def test_a_device_that_never_drafts_is_never_waited_for() -> None:
    with InProcessVerifier(MockEngine(), objective=Objective.CAPACITY) as verifier:
        rest = whole(verifier, ask())
        assert rest.tokens == WORDS
        assert rest.finished.statistics.waited_us == 0


# -- what a full step does --------------------------------------------------------------------------------------------


def test_trimmed_guesses_and_waiting_are_counted_and_the_budget_falls() -> None:
    """An answer of 20 tokens, all guessed at once, checked four positions at a time."""
    with (
        InProcessVerifier(MockEngine(), scheduler=SchedulerSettings(step_tokens=4)) as verifier,
        Stream(verifier.address, ask(waiting=True)) as stream,
    ):
        stream.opened()
        stream.tokens(1)
        stream.draft(START + 1, WORDS[1:], START + 1)
        rest = stream.rest()
    assert rest.tokens == WORDS[1:]
    stats = rest.finished.statistics
    assert stats.verified_tokens == stats.accepted_tokens == 3 + 3 + 3 + 3 + 2
    assert stats.trimmed_tokens == 15 + 11 + 7 + 3  # of 18, 14, 10 and 6: the last token is never a guess
    assert stats.waited_us > 0
    assert min(commit.draft_budget for commit in rest.commits) < 64


def test_a_session_that_waits_in_a_full_step_goes_first_in_the_next() -> None:
    """One position per step, four sessions that all want it: they take turns."""
    engine = GatedEngine()
    with InProcessVerifier(engine, scheduler=SchedulerSettings(step_tokens=1)) as verifier:
        streams = [Stream(verifier.address, ask(4, prompt=(5 + i,))) for i in range(4)]
        for stream in streams:
            stream.opened()
        sessions = list(verifier.service._sessions.values())
        until(lambda: verifier.scheduler.running == 4, "all are there")
        for turn in range(1, 5):
            engine.allow(4)
            until(lambda turn=turn: sum(s.line.length for s in sessions) >= 4 + 4 * turn, "four steps")  # type: ignore[misc]
            assert [s.line.length for s in sessions] == [1 + turn] * 4
        for i, stream in enumerate(streams):
            assert stream.rest().tokens == answer((5 + i,), SEED, 4)
            stream.cut()


# -- same words -------------------------------------------------------------------------------------------------------


def device(address: str, seed: int, tokens: int) -> tuple[list[int], list[int]]:
    """A device that guesses, errs, and changes its mind about patience and objective at random: what it got, and what
    is right."""
    rng = random.Random(seed)
    prompt = [2 + rng.randrange(60) for _ in range(rng.choice((1, 4, 30, 90)))]
    right = answer(prompt, seed, tokens)
    request = opening(
        prompt_ids=pb.TokenIds(ids=prompt),
        seed=seed,
        sampling=pb.SamplingParams(max_tokens=tokens),
        objective=rng.choice((0, *OBJECTIVES)),
        patience_ms=rng.choice((None, 0, 3, PATIENCE_UNLIMITED_MS)),
    )
    accuracy = rng.choice((0.0, 0.7, 1.0))
    got: list[int] = []
    with Stream(address, request) as stream:
        stream.opened()
        while True:
            for _ in range(rng.randrange(4)):
                start = len(got) + rng.randrange(3)
                guesses = [
                    t if rng.random() < accuracy else rng.randrange(VOCABULARY_SIZE)
                    for t in right[start : start + rng.randrange(11)]
                ]
                wish = {"objective": rng.choice((0, *OBJECTIVES))}
                if rng.random() < 0.3:
                    wish["patience_ms"] = rng.choice((0, 2, PATIENCE_UNLIMITED_MS))
                confidence = bytes(rng.randrange(256) for _ in guesses) if rng.random() < 0.7 else b""
                known = len(prompt) + len(got)
                stream.draft(len(prompt) + start, guesses, known, confidence=confidence, **wish)
            stream.draft(len(prompt) + len(got), [], len(prompt) + len(got), patience_ms=0)  # or it may wait for ever
            response = stream.read()
            got += response.commit.tokens
            if response.HasField("finished"):
                return got, right


@pytest.mark.parametrize(("step_tokens", "chunk_tokens"), [(1, 1), (5, 3), (24, 16), (512, 256)])
def test_many_fickle_devices_at_a_small_table(step_tokens: int, chunk_tokens: int) -> None:
    with (
        InProcessVerifier(
            MockEngine(max_sequences=16), max_lookahead=10, scheduler=SchedulerSettings(step_tokens, chunk_tokens)
        ) as verifier,
        ThreadPoolExecutor(12) as pool,
    ):
        for got, right in pool.map(lambda seed: device(verifier.address, seed, 30), range(24)):
            assert got == right


def test_the_prompt_of_one_does_not_stop_the_words_of_another() -> None:
    """A prompt of 200 tokens read beside a writing session: both have a part in every step."""
    engine = GatedEngine()
    with (
        InProcessVerifier(engine, scheduler=SchedulerSettings(step_tokens=9, chunk_tokens=7)) as verifier,
        Stream(verifier.address, ask()) as writing,
        Stream(verifier.address) as reading,
    ):
        writing.opened()
        engine.allow(1)
        writing.tokens(1)
        reading.send(open=ask(3, prompt=(5,) * 200))
        reading.opened()
        first, second = verifier.service._sessions.values()
        engine.allow(1)  # for a step that may have begun before the prompt came
        until(lambda: first.line.length == START + 2, "a step")
        for step in range(1, 11):
            engine.allow(1)
            until(lambda step=step: first.line.length == START + 2 + step, "a step")  # type: ignore[misc]
            until(lambda step=step: second.cached >= 8 * step, "the prompt is read on")  # type: ignore[misc]
            assert second.cached <= 8 * (step + 1)
        engine.allow(10_000)
        assert writing.rest().tokens == WORDS[1:]
        assert reading.rest().tokens == answer((5,) * 200, SEED, 3)
