"""Sessions on an engine that schedules by itself: the same words, whatever it is told and however it goes on."""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence

import pytest

from cloud_verifier.engines.base import Logprobs, Sampler, SequenceId
from cloud_verifier.engines.self_scheduling import Turn, Written
from cloud_verifier.engines.vllm.self_test import LENGTHS, self_test
from cloud_verifier.engines.vllm.self_test import TOKENS as TOKENS_TRIED
from cloud_verifier.guessing.base import Guesser, OwnGuess
from cloud_verifier.scheduling import own_guesses
from cloud_verifier.scheduling.patience import Patience
from cloud_verifier.scheduling.scheduler import Scheduler, SchedulerSettings
from cloud_verifier.scheduling.session import FinishReason, Session
from speculation.answer_text import AnswerText
from speculation.pace.base import PATIENCE_UNLIMITED_MS
from speculation.sampling import SamplingParams
from speculation.verifier_tree import VerifierTree
from tests.harness import LetterStream
from tests.mock_engine import answer, next_token
from tests.turn_mock_engine import TurnMockEngine

TOKENS = 40


class Bench:
    """A scheduler on such an engine, stepped by hand."""

    def __init__(self, engine: TurnMockEngine, step_tokens: int = 64) -> None:
        self.engine, self.now_s = engine, 0.0
        self.scheduler = Scheduler(engine, SchedulerSettings(step_tokens), clock=lambda: self.now_s)

    def add(self, seed: int, *, prompt: int = 4, patience_ms: int = 0, logprobs: int | None = None) -> Session:
        tokens = [2 + (seed + place) % 60 for place in range(prompt)]
        session = Session(
            session_id=str(seed),
            sampler=Sampler(SamplingParams(logprobs=logprobs), seed, prompt),
            line=VerifierTree(tokens),
            text=AnswerText(LetterStream(), ()),
            stop_ids=frozenset(),
            max_length=prompt + TOKENS,
            max_lookahead=16,
            patience=Patience(patience_ms),
            ready_since_s=0.0,
            owner=f"owner {seed}",
        )
        self.scheduler.add(session)
        return session

    def step(self) -> list[Session]:
        """Who had a turn."""
        self.scheduler._free_ended()
        plan = self.scheduler._plan()
        if plan:
            results = self.scheduler._stepping.step(plan)
            self.now_s += 0.03
            self.scheduler._apply(plan, results, self.now_s - 0.03, self.now_s)
        for planned in plan:
            planned.session.sent = planned.session.line.length  # somebody reads
        return [planned.session for planned in plan]

    def draft(self, session: Session, guesses: list[int]) -> None:
        length = session.line.length
        session.draft(length, guesses, length, [0.9] * len(guesses), self.now_s)


def words(session: Session) -> list[int]:
    return answer(session.line.log[: session.prompt_length], session.sampler.seed, TOKENS)


@pytest.mark.parametrize("room", [1, 2, 64])
@pytest.mark.parametrize("bonus", [0, 2])
@pytest.mark.parametrize("accuracy", [0.0, 0.7, 1.0])
def test_the_words_are_the_targets_whatever_is_guessed(accuracy: float, bonus: int, room: int) -> None:
    rng = random.Random(3)
    bench = Bench(TurnMockEngine(room=room, bonus=bonus))
    sessions = [bench.add(seed, prompt=1 + 3 * seed, logprobs=0) for seed in range(4)]
    for _ in range(4 * (TOKENS + 20)):
        for session in sessions:
            if not session.over and rng.random() < 0.8:
                right = answer(session.line.log, session.sampler.seed, rng.randrange(1, 9))
                bench.draft(session, [t if rng.random() < accuracy else t ^ 1 for t in right])
        bench.step()
    for session in sessions:
        assert session.finish is FinishReason.LENGTH
        assert session.answer == words(session)
        assert session.logprobs == [Logprobs(-float(token), (), ()) for token in session.answer]
    figures = bench.scheduler.counters
    assert figures.accepted_tokens == sum(session.statistics.accepted_tokens for session in sessions)
    assert (figures.accepted_tokens > 0) == (accuracy > 0)
    assert figures.prompt_positions == sum(session.prompt_length for session in sessions)
    bench.step()
    assert not bench.engine.sequences


class Often(Guesser):
    """Right at most places."""

    def __init__(self, seed: int, accuracy: float) -> None:
        self._seed, self._accuracy, self._rng = seed, accuracy, random.Random(seed)

    def after(self, log: Sequence[int], path: Sequence[int]) -> Generator[OwnGuess, None, None]:
        for token in answer([*log, *path], self._seed, TOKENS):
            yield OwnGuess(token if self._rng.random() < self._accuracy else token ^ 1, 0.9)


@pytest.mark.parametrize("bonus", [0, 2])
@pytest.mark.parametrize("device", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("own", [0.0, 0.9])
def test_the_verifiers_own_guesses_join_the_line_and_change_no_word(
    own: float, device: float, bonus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_guesses, "SLOW", 0.0)  # how long they take here is no business of this test
    rng = random.Random(5)
    bench = Bench(TurnMockEngine(bonus=bonus))
    sessions = [bench.add(seed, prompt=1 + 3 * seed) for seed in range(3)]
    for session in sessions:
        session.guesser = Often(session.sampler.seed, own)
    for _ in range(4 * (TOKENS + 20)):
        for session in sessions:
            if not session.over and device and rng.random() < 0.8:
                right = answer(session.line.log, session.sampler.seed, rng.randrange(1, 4))
                bench.draft(session, [t if rng.random() < device else t ^ 1 for t in right])
        bench.step()
    assert max(len(turn.guesses) for turns in bench.engine.turns for turn in turns) <= bench.engine.most_guesses
    figures = bench.scheduler.counters
    verified = accepted = 0
    for session in sessions:
        assert session.finish is FinishReason.LENGTH
        assert session.answer == words(session)
        verified += session.statistics.own_verified_tokens
        accepted += session.statistics.own_accepted_tokens
    assert 0 < accepted <= verified if own else accepted == 0 < verified
    assert figures.own_positions == verified
    assert figures.accepted_tokens == sum(session.statistics.accepted_tokens for session in sessions)
    assert (figures.accepted_tokens > 0) == (device > 0)


def test_guesses_are_cut_to_what_the_engine_takes_and_what_is_left_of_the_answer() -> None:
    bench = Bench(TurnMockEngine())
    session = bench.add(1)
    while not session.over:
        bench.draft(session, answer(session.line.log, 1, 12))
        bench.step()
    given = [len(turn.guesses) for turns in bench.engine.turns for turn in turns]
    assert max(given) == bench.engine.most_guesses
    assert given[0] == 0, "a prompt that is being read has no use for guesses"
    assert session.answer == words(session)
    assert session.statistics.trimmed_tokens > 0


def test_a_small_step_gives_every_session_one_position_and_the_rest_to_guesses() -> None:
    bench = Bench(TurnMockEngine(chunk=64), step_tokens=5)
    sessions = [bench.add(seed) for seed in range(3)]
    bench.step()
    for session in sessions:
        bench.draft(session, answer(session.line.log, session.sampler.seed, 4))
    bench.step()
    assert sum(len(turn.guesses) for turn in bench.engine.turns[-1]) == 2
    assert len(bench.engine.turns[-1]) == 3


def test_who_waits_for_its_device_has_no_turn() -> None:
    bench = Bench(TurnMockEngine(chunk=64))
    patient, other = bench.add(1, patience_ms=PATIENCE_UNLIMITED_MS), bench.add(2)
    assert bench.step() == [patient, other]
    assert bench.step() == [other]
    bench.draft(patient, [next_token(patient.line.log, 1)])
    assert set(bench.step()) == {patient, other}
    assert len(patient.answer) == 3


def test_beginnings_are_shared_among_the_sessions_of_one_owner_only() -> None:
    bench = Bench(TurnMockEngine())
    bench.add(1)
    bench.add(2)
    bench.step()
    assert bench.engine.scopes == ["owner 1", "owner 2"]


def test_the_self_test_passes_a_target_that_is_exact_and_leaves_nothing_open() -> None:
    engine = TurnMockEngine(chunk=64)
    report = self_test(engine)
    assert report.strict, report.sentence
    assert not engine.sequences


class FaultyTurnEngine(TurnMockEngine):
    """Says something a little different under one condition."""

    def __init__(self, fault: str) -> None:
        super().__init__(chunk=64)
        self._fault = fault

    def step(self, turns: list[Turn]) -> list[Written]:  # type: ignore[override]
        results = super().step(turns)
        longest = max(len(turn.guesses) for turn in turns)
        if {"company": len(turns) > 1, "rows": longest > 3, "one row": len(turns) == 1 and not longest}[self._fault]:
            return [
                Written(w.tokens, [Logprobs(p.logprob + 1e-12, (), ()) for p in w.logprobs], *_rest(w)) for w in results
            ]
        return results


def _rest(written: Written) -> tuple[int, int, int]:
    return written.checked, written.positions, written.found


@pytest.mark.parametrize(("fault", "told"), [("company", "company"), ("rows", "rows"), ("one row", "rows")])
def test_the_self_test_finds_the_smallest_difference(fault: str, told: str) -> None:
    report = self_test(FaultyTurnEngine(fault))
    assert not report.strict
    assert told in report.sentence


class ForgetfulTurnEngine(TurnMockEngine):
    """A log that is read at once gives other words than one that was written."""

    def open(self, tokens: list[int], sampler: Sampler, scope: str = "") -> SequenceId:  # type: ignore[override]
        again = len(tokens) == max(LENGTHS) + TOKENS_TRIED // 2
        return super().open(tokens[:1] if again else tokens, sampler, scope)


def test_the_self_test_reads_a_log_again() -> None:
    report = self_test(ForgetfulTurnEngine(chunk=1024))
    assert not report.strict
    assert "a log that is read at once" in report.sentence


class SharingTurnEngine(TurnMockEngine):
    """A sequence whose beginning is there already says something else."""

    def open(self, tokens: list[int], sampler: Sampler, scope: str = "") -> SequenceId:  # type: ignore[override]
        return super().open(tokens[:1] if len(tokens) > 500 and scope in self.scopes else tokens, sampler, scope)


def test_the_self_test_reads_a_long_prompt_in_two_steps() -> None:
    report = self_test(SharingTurnEngine(chunk=1024))
    assert not report.strict
    assert "read in one step" in report.sentence
