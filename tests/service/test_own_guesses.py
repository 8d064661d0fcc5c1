"""The verifier's own guesses: fewer forwards for whoever repeats himself, and never another word."""

from __future__ import annotations

import random
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from cloud_verifier.engines.base import Block, Choices, Sampler, SequenceId
from cloud_verifier.engines.paced import PacedEngine
from cloud_verifier.guessing.base import Guesser, OwnGuess
from cloud_verifier.guessing.model import DraftModel
from cloud_verifier.guessing.ngram import NgramGuesser
from cloud_verifier.scheduling import guess_thread, own_guesses
from cloud_verifier.scheduling.scheduler import SchedulerSettings
from edge_client.client import EdgeClient
from edge_client.drafters.base import Drafter
from edge_client.types import RequestOutput
from speculation.pace.adaptive import Adaptive
from speculation.pace.base import FixedTree, Pace, Streaming, Synchronous
from speculation.sampling import SamplingParams
from tests.harness import InProcessVerifier, MockDrafter
from tests.mock_engine import MockEngine, answer
from tests.service.raw import until
from tests.service.test_drafters_with_little_to_say import TEXT, Repeating

SEED, COUNT = 7, 160
PARAMS = SamplingParams(max_tokens=COUNT)
STEP_MS = 5.0  # a mock's step would take less than to guess


@pytest.fixture(autouse=True)
def guesses_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long they take on a busy machine is no business of these tests."""
    monkeypatch.setattr(own_guesses, "SLOW", 0.0)


def ask(
    engine: MockEngine,
    prompt: Sequence[int],
    *,
    own: bool,
    drafter: Drafter | None = None,
    pace: Pace | None = None,
    step_tokens: int = 64,
) -> RequestOutput:
    with (
        InProcessVerifier(
            PacedEngine(engine, STEP_MS, 0.0),
            guessers=NgramGuesser if own else None,
            scheduler=SchedulerSettings(step_tokens=step_tokens),
        ) as verifier,
        EdgeClient(verifier.address, drafter, pace=lambda: pace or Streaming()) as client,
    ):
        return client.generate(list(prompt), PARAMS, seed=SEED)


def test_a_client_without_a_drafter_gets_several_tokens_of_a_forward() -> None:
    plain, helped = (ask(Repeating(len(TEXT)), TEXT, own=own) for own in (False, True))
    assert plain.token_ids == helped.token_ids == tuple((TEXT * 9)[:COUNT])
    assert plain.metrics.target_forwards == COUNT
    assert (plain.metrics.own_verified_tokens, plain.metrics.own_accepted_tokens) == (0, 0)
    assert helped.metrics.target_forwards < COUNT // 3
    assert helped.metrics.own_accepted_tokens >= COUNT - 2 * helped.metrics.target_forwards
    assert helped.metrics.own_accepted_tokens <= helped.metrics.own_verified_tokens
    assert not any(helped.drafted)
    assert helped.metrics.acceptance is None


@pytest.mark.parametrize("pace", [Synchronous(4), Adaptive(), FixedTree(2)], ids=lambda pace: pace.name)
@pytest.mark.parametrize("accuracy", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("prompt", [TEXT, [5, 9, 12]], ids=["repeats", "does not"])
def test_beside_a_device_no_word_changes(pace: Pace, accuracy: float, prompt: Sequence[int]) -> None:
    engine = Repeating(len(TEXT)) if prompt is TEXT else MockEngine()
    expected = (TEXT * 9)[:COUNT] if prompt is TEXT else answer(prompt, SEED, COUNT)
    output = ask(engine, prompt, own=True, drafter=MockDrafter(3, SEED, accuracy), pace=pace)
    assert output.token_ids == tuple(expected)
    assert sum(output.drafted) == output.metrics.accepted_tokens
    assert output.metrics.accepted_tokens <= output.metrics.verified_tokens


class Wild(Guesser):
    """Guesses whatever: right, wrong, without end."""

    def __init__(self, sampler: Sampler) -> None:
        self._rng = random.Random(sampler.seed)

    def after(self, log: Sequence[int], path: Sequence[int]) -> Generator[OwnGuess, None, None]:
        truth = answer([5, 9, 12], SEED, COUNT + 64)[len(log) + len(path) - 3 :]
        for token in truth:
            yield OwnGuess(token if self._rng.random() < 0.8 else 3, 0.99)


@pytest.mark.parametrize("trees", [True, False])
@pytest.mark.parametrize("step_tokens", [1, 3, 64])
def test_guesses_of_both_are_told_apart(step_tokens: int, trees: bool) -> None:
    with (
        InProcessVerifier(
            PacedEngine(MockEngine(trees=trees), STEP_MS, 0.0),
            guessers=Wild,
            scheduler=SchedulerSettings(step_tokens=step_tokens),
        ) as verifier,
        EdgeClient(verifier.address, MockDrafter(3, SEED, 0.7), pace=lambda: Synchronous(3)) as client,
    ):
        output = client.generate([5, 9, 12], PARAMS, seed=SEED)
        counters = verifier.scheduler.counters
    assert output.token_ids == tuple(answer([5, 9, 12], SEED, COUNT))
    metrics = output.metrics
    assert metrics.target_forwards + metrics.accepted_tokens + metrics.own_accepted_tokens == COUNT
    assert (counters.own_positions, counters.own_accepted_tokens) == (
        metrics.own_verified_tokens,
        metrics.own_accepted_tokens,
    )
    if step_tokens == 1:  # a full step has no room for them
        assert metrics.own_verified_tokens == 0
    if step_tokens == 64:
        assert metrics.own_accepted_tokens > COUNT // 4
        assert metrics.accepted_tokens > COUNT // 10  # a quarter when own guesses only went on after the device's


@pytest.mark.parametrize("trees", [True, False])
@pytest.mark.parametrize("source", ["lookup of a sort", "a model"])
def test_a_device_that_guesses_in_vain_takes_nothing_from_the_verifiers_own(source: str, trees: bool) -> None:
    """Its line is wrong from the first guess on: the verifier's own stand beside it."""
    with (
        InProcessVerifier(
            PacedEngine(MockEngine(trees=trees), STEP_MS, 0.0),
            guessers=DraftModel(Often()) if source == "a model" else Wild,
        ) as verifier,
        EdgeClient(verifier.address, MockDrafter(3, SEED, 0.0), pace=lambda: Synchronous(4)) as client,
    ):
        output = client.generate([5, 9, 12], PARAMS, seed=SEED)
    assert output.token_ids == tuple(answer([5, 9, 12], SEED, COUNT))
    metrics = output.metrics
    assert metrics.target_forwards + metrics.accepted_tokens + metrics.own_accepted_tokens == COUNT
    assert metrics.verified_tokens > 0
    assert metrics.own_accepted_tokens > COUNT // 4


class Broken(Wild):
    """Fails in the middle of an answer."""

    def after(self, log: Sequence[int], path: Sequence[int]) -> Generator[OwnGuess, None, None]:
        if len(log) > COUNT // 2:
            raise RuntimeError("no more")
        yield from super().after(log, path)


def test_a_guesser_that_fails_costs_nothing_but_its_guesses(caplog: pytest.LogCaptureFixture) -> None:
    with (
        InProcessVerifier(PacedEngine(MockEngine(), STEP_MS, 0.0), guessers=Broken) as verifier,
        EdgeClient(verifier.address) as client,
    ):
        output = client.generate([5, 9, 12], PARAMS, seed=SEED)
    assert output.token_ids == tuple(answer([5, 9, 12], SEED, COUNT))
    assert output.metrics.own_accepted_tokens > COUNT // 8
    assert caplog.text.count("gets no more guesses") == 1


def test_who_guesses_in_vain_guesses_little() -> None:
    """A target of 60 letters at random says the same pair often enough, and goes on with something else."""
    output = ask(MockEngine(), [5, 9, 12], own=True)
    assert output.token_ids == tuple(answer([5, 9, 12], SEED, COUNT))
    assert output.metrics.own_verified_tokens < COUNT


class Often(MockEngine):
    """A small model that says as the target does, two times of three."""

    def _evaluate(self, block: Block) -> Choices:
        right = super()._evaluate(block).tokens
        end = len(self.sequences[block.sequence])
        first = end - len(right) + 1
        return Choices([(token + 1) % 60 + 2 if at % 3 == 0 else token for at, token in enumerate(right, first)])


@pytest.mark.parametrize("kind", ["alone", "with a device", "both always right", "trees"])
def test_a_small_model_beside_the_target(kind: str) -> None:
    drafting = MockEngine() if kind == "both always right" else Often()
    drafter = None if kind == "alone" else MockDrafter(3, SEED, 0.9)
    pace = {"alone": Streaming(), "trees": FixedTree(2)}.get(kind, Synchronous(3))
    with (
        InProcessVerifier(PacedEngine(MockEngine(), STEP_MS, 0.0), guessers=DraftModel(drafting)) as verifier,
        EdgeClient(verifier.address, drafter, pace=lambda: pace) as client,
    ):
        outputs = [client.generate([5, 9, at], PARAMS, seed=SEED) for at in (12, 13)]
        until(lambda: not drafting.sequences, "its sequences are freed with the sessions")
    for at, output in zip((12, 13), outputs, strict=True):
        assert output.token_ids == tuple(answer([5, 9, at], SEED, COUNT))
        metrics = output.metrics
        assert metrics.target_forwards + metrics.accepted_tokens + metrics.own_accepted_tokens == COUNT
        if kind == "alone":  # what a device leaves to guess depends on when its drafts come
            assert metrics.own_accepted_tokens > COUNT // 8
            assert metrics.target_forwards < COUNT * 2 // 3


def test_many_sessions_share_a_forward_of_the_small_model() -> None:
    drafting = Often(max_sequences=16)
    with (
        InProcessVerifier(
            PacedEngine(MockEngine(max_sequences=16), STEP_MS, 0.0), guessers=DraftModel(drafting)
        ) as verifier,
        EdgeClient(verifier.address) as client,
        ThreadPoolExecutor(12) as pool,
    ):
        outputs = list(pool.map(lambda at: client.generate([5, at], PARAMS, seed=SEED), range(12)))
    assert [output.token_ids for output in outputs] == [tuple(answer([5, at], SEED, COUNT)) for at in range(12)]
    assert max(drafting.batch_sizes) > 2
    assert sum(output.metrics.own_accepted_tokens for output in outputs) > 12 * COUNT // 8


def test_the_first_token_does_not_wait_for_the_small_model() -> None:
    steps: list[str] = []

    class Noted(MockEngine):
        def step(self, blocks: Sequence[Block]) -> list[Choices]:
            steps.append("target" if self is target else "small")
            return super().step(blocks)

    target = Noted()
    with (
        InProcessVerifier(PacedEngine(target, STEP_MS, 0.0), guessers=DraftModel(Noted())) as verifier,
        EdgeClient(verifier.address) as client,
    ):
        for at in (12, 13):
            steps.clear()
            output = client.generate([5, 9, at], PARAMS, seed=SEED)
    assert output.metrics.own_accepted_tokens > 0
    assert steps[:2] == ["target", "small"]


class Crashing(Often):
    """Fails after a while."""

    def _evaluate(self, block: Block) -> Choices:
        if len(self.sequences[block.sequence]) > COUNT // 2:
            raise RuntimeError("out of memory")
        return super()._evaluate(block)


@pytest.mark.parametrize("drafting", [Crashing(), MockEngine(max_sequences=0), Often(context_limit=40)])
def test_a_small_model_that_fails_costs_nothing_but_its_guesses(drafting: MockEngine) -> None:
    with (
        InProcessVerifier(PacedEngine(MockEngine(), STEP_MS, 0.0), guessers=DraftModel(drafting)) as verifier,
        EdgeClient(verifier.address) as client,
    ):
        output = client.generate([5, 9, 12], PARAMS, seed=SEED)
        until(lambda: not drafting.sequences, "its sequence is freed")
    assert output.token_ids == tuple(answer([5, 9, 12], SEED, COUNT))


class Hanging(Often):
    """Does not come back from a step until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.hangs, self.free = threading.Event(), threading.Event()

    def step(self, blocks: Sequence[Block]) -> list[Choices]:
        if self.sequences and max(map(len, self.sequences.values())) > COUNT // 2 and not self.free.is_set():
            self.hangs.set()
            self.free.wait()
        return super().step(blocks)

    def close(self, sequence: SequenceId) -> None:
        assert self.free.is_set() or not self.hangs.is_set(), "called while another call is under way"
        super().close(sequence)


def test_a_small_model_that_hangs_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(guess_thread, "PATIENCE_S", 0.1)
    monkeypatch.setattr(guess_thread, "PATIENCE_STEPS", 0)
    drafting = Hanging()
    with (
        InProcessVerifier(PacedEngine(MockEngine(), STEP_MS, 0.0), guessers=DraftModel(drafting)) as verifier,
        EdgeClient(verifier.address) as client,
    ):
        outputs = [client.generate([5, 9, at], PARAMS, seed=SEED) for at in (12, 13)]
        assert drafting.hangs.is_set()
        drafting.free.set()
        monkeypatch.setattr(guess_thread, "PATIENCE_S", 60.0)
        until(
            lambda: client.generate([5, 9, 14], PARAMS, seed=SEED).metrics.own_accepted_tokens > 0, "it guesses again"
        )
        until(lambda: not drafting.sequences, "its sequences are freed")
    for at, output in zip((12, 13), outputs, strict=True):
        assert output.token_ids == tuple(answer([5, 9, at], SEED, COUNT))
    assert outputs[1].metrics.own_verified_tokens == 0
    assert caplog.text.count("do not come") == caplog.text.count("drawn again") == 1
