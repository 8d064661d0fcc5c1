"""The riding loop with drafters that say nothing, may draft for a part of the time only, or forget the beginning."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from edge_client.client import EdgeClient
from edge_client.drafters.base import Candidates, Drafter
from edge_client.drafters.lookup.chain import ChainDrafter
from edge_client.drafters.lookup.history import HistoryDrafter
from edge_client.drafters.lookup.history_store import HistoryStore
from edge_client.drafters.lookup.ngram import NgramDrafter
from edge_client.types import RequestOutput
from speculation.pace.adaptive import Adaptive
from speculation.pace.base import Action, BoundedLookahead, FixedLookahead, Pace, Pipelined, Synchronous, View
from speculation.sampling import SamplingParams
from tests.harness import InProcessVerifier, LetterCodec, MockDrafter, queue_of
from tests.mock_engine import MockEngine, answer
from tests.service.raw import DEADLINE_S, PROMPT, SEED, until

COUNT = 60
PARAMS = SamplingParams(max_tokens=COUNT)
WORDS = tuple(answer(PROMPT, SEED, COUNT))
PACES: dict[str, Callable[[], Pace]] = {
    "sync": lambda: Synchronous(4),
    "server-led": BoundedLookahead,
    "patient": lambda: FixedLookahead(4, patience_ms=600_000),
    "pipelined": Pipelined,
    "adaptive": Adaptive,
    "deep": lambda: Synchronous(80),
}
TEXT = [2 + (i * i + 3 * (i // 7)) % 60 for i in range(40)]  # no pair of tokens stands in it twice in a misleading way


class Repeating(MockEngine):
    """A target that says its prompt again and again."""

    def __init__(self, period: int) -> None:
        super().__init__()
        self._period = period

    def choice(self, tokens: Sequence[int], seed: int) -> int:
        return tokens[len(tokens) - self._period] if len(tokens) >= self._period else 2


class Silent(MockDrafter):
    """Speaks up only at every fourth position."""

    def __init__(self) -> None:
        super().__init__(3, SEED, 1.0)
        self.asked: list[int] = []

    def candidates(self) -> Candidates:
        self.asked.append(self.length)
        if self.length % 4:
            return Candidates(np.zeros(0, np.int64), np.zeros(0))
        return super().candidates()


def ask(drafter: Drafter, pace: Callable[[], Pace], prompt: Sequence[int] = PROMPT) -> RequestOutput:
    with InProcessVerifier(MockEngine()) as verifier, EdgeClient(verifier.address, drafter, pace=pace) as client:
        return client.generate(prompt, PARAMS, seed=SEED)


@pytest.mark.parametrize("pace", PACES)
def test_a_silent_drafter_is_not_asked_twice(pace: str) -> None:
    drafter = Silent()
    began_s = time.perf_counter()
    output = ask(drafter, PACES[pace])
    assert output.token_ids == WORDS
    assert not output.metrics.notices
    assert time.perf_counter() - began_s < DEADLINE_S  # a verifier that waits is told that nothing comes
    assert all(first != second for first, second in zip(drafter.asked, drafter.asked[1:], strict=False))
    if pace in ("sync", "patient", "pipelined"):
        assert output.metrics.accepted_tokens > COUNT // 8


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("kind", ["ngram", "ngram+model", "ngram+garbage"])
def test_free_drafters_need_no_vocabulary_and_change_no_word(pace: str, kind: str) -> None:
    drafter: Drafter = NgramDrafter()
    if kind != "ngram":
        drafter = ChainDrafter([drafter], MockDrafter(3, SEED, 0.8 if kind == "ngram+model" else 0.0))
    output = ask(drafter, PACES[pace])
    assert output.token_ids == WORDS
    assert not output.metrics.notices
    if kind == "ngram+model" and pace == "sync":
        assert output.metrics.accepted_tokens > COUNT // 4


@pytest.mark.parametrize("pace", ["sync", "server-led", "adaptive"])
def test_ngram_finds_what_repeats(pace: str) -> None:
    with (
        InProcessVerifier(Repeating(len(TEXT))) as verifier,
        EdgeClient(verifier.address, NgramDrafter(), pace=PACES[pace]) as client,
    ):
        output = client.generate(TEXT, PARAMS, seed=SEED)
    assert output.token_ids == tuple((TEXT * 3)[:COUNT])
    if pace == "sync":
        assert output.metrics.target_forwards < COUNT // 3


def test_what_was_answered_once_is_known(tmp_path_factory: pytest.TempPathFactory) -> None:
    store = HistoryStore(tmp_path_factory.mktemp("history"))
    with InProcessVerifier(MockEngine()) as verifier:
        forwards = []
        for _ in range(2):
            with EdgeClient(verifier.address, HistoryDrafter(store), pace=PACES["sync"]) as client:
                output = client.generate(PROMPT, PARAMS, seed=SEED)
                assert output.token_ids == WORDS
                assert not output.metrics.notices
                forwards.append(output.metrics.target_forwards)
    assert store.load(LetterCodec.fingerprint).answers == [list(WORDS)] * 2
    assert forwards[1] < forwards[0] / 2


def test_an_answer_that_cannot_be_kept_is_a_notice(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("history") / "file"
    file.touch()
    drafter = HistoryDrafter(HistoryStore(file / "below"))
    with (
        InProcessVerifier(MockEngine()) as verifier,
        EdgeClient(verifier.address, drafter, pace=PACES["sync"]) as client,
    ):
        outputs = []
        for _ in range(3):
            outputs.append(client.generate(PROMPT, PARAMS, seed=SEED))
            until(lambda: not queue_of(client).taken, "the drafter has learned")
    assert {output.token_ids for output in outputs} == {WORDS}
    told = [[notice for notice in output.metrics.notices if "kept" in notice] for output in outputs]
    assert [len(notices) for notices in told] == [0, 1, 0], "the next answer tells it, and once is enough"
    assert "answers cannot be kept" in told[1][0]


class Slow(MockDrafter):
    """Takes its time for every token."""

    def candidates(self) -> Candidates:
        time.sleep(0.004)
        return super().candidates()


class Eager(Pace):
    """Drafts whenever it may, of a verifier that waits for it; counts how often it is asked."""

    name = "eager"
    patience_ms = 60_000

    def __init__(self) -> None:
        self.asked = 0

    def next(self, view: View) -> Action:
        self.asked += 1
        if view.can_draft and view.depth < 4:
            return Action.DRAFT
        return Action.FLUSH if view.unsent else Action.WAIT


def test_the_duty_cycle_holds_and_nobody_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Eager()
    calls_ms: list[float] = []
    began_s = time.perf_counter()
    with (
        InProcessVerifier(MockEngine()) as verifier,
        EdgeClient(verifier.address, Slow(3, SEED, 1.0), pace=lambda: pace, max_draft_duty=0.25) as client,
    ):
        assert client._drafter is not None
        duty = client._drafter.lease.duty
        assert duty is not None
        now_ms = time.perf_counter() * 1e3
        duty.spend(now_ms - 400.0, now_ms)  # 100 ms are left of what is saved up
        spend = duty.spend

        def noted(began_ms: float, ended_ms: float) -> None:
            calls_ms.append(ended_ms - began_ms)
            spend(began_ms, ended_ms)

        monkeypatch.setattr(duty, "spend", noted)
        output = client.generate(PROMPT, PARAMS, seed=SEED)
    elapsed_ms = (time.perf_counter() - began_s) * 1e3
    assert output.token_ids == WORDS
    # A call that has begun is not interrupted: the budget is overdrawn by one at most, however long it took here.
    assert sum(calls_ms) <= 100.0 + 0.25 * elapsed_ms + max(calls_ms)
    assert 0 < output.metrics.drafting_ms <= sum(calls_ms) + 1e-3  # words do not wait for the last call
    assert pace.asked < 20 * COUNT


@pytest.mark.parametrize("pace", ["sync", "server-led", "adaptive", "deep"])
def test_a_drafter_may_forget_the_beginning(pace: str) -> None:
    """A target that repeats what stands 40 tokens before, a lookup that holds at most 96."""
    period = len(TEXT)
    with InProcessVerifier(Repeating(period)) as verifier:
        drafter = NgramDrafter(context_tokens=96)
        with EdgeClient(verifier.address, drafter, pace=PACES[pace]) as client:
            output = client.generate(TEXT, SamplingParams(max_tokens=400), seed=SEED)
            assert drafter.length <= 96
            again = client.generate([*TEXT, *output.token_ids], PARAMS, seed=SEED)
    assert output.token_ids == tuple((TEXT * 11)[:400])
    assert again.token_ids == output.token_ids[:COUNT]
    assert not output.metrics.notices
    if pace == "sync":
        assert output.metrics.target_forwards < 250
        assert again.metrics.accepted_tokens > COUNT // 3


class ShortDrafter(MockDrafter):
    """A model that is right as long as it knows the whole text, and holds 64 tokens of it."""

    longest = fed = 0

    def __init__(self) -> None:
        super().__init__(1, SEED, accuracy=1.0)
        self.info = dataclasses.replace(self.info, context_tokens=64)

    def feed(self, tokens: Sequence[int]) -> None:
        super().feed(tokens)
        self.fed += len(tokens)
        self.longest = max(self.longest, self.length)


def test_an_answer_of_several_contexts() -> None:
    drafter, count = ShortDrafter(), 300
    with (
        InProcessVerifier(MockEngine()) as verifier,
        EdgeClient(verifier.address, drafter, pace=PACES["sync"]) as client,
    ):
        output = client.generate(PROMPT, SamplingParams(max_tokens=count), seed=SEED)
    assert output.token_ids == tuple(answer(PROMPT, SEED, count))
    assert not output.metrics.notices
    assert output.metrics.accepted_tokens > 0
    assert drafter.longest == 64
    assert drafter.fed > count  # it went on to the end
