"""Too little memory for everybody: all words come in the end, and nobody's reading is thrown away half done.

Guesses are trees as often as lines. What may happen to a session between two steps happens between the plan of a step
and its result as well.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_verifier.engines.base import Sampler
from cloud_verifier.scheduling.block_stepping import BlockStepping
from cloud_verifier.scheduling.patience import Patience
from cloud_verifier.scheduling.scheduler import Scheduler, SchedulerSettings
from cloud_verifier.scheduling.session import FinishReason, Session
from speculation.answer_text import AnswerText
from speculation.pace.base import PATIENCE_UNLIMITED_MS
from speculation.sampling import SamplingParams
from speculation.verifier_tree import VerifierTree
from tests.harness import LetterStream
from tests.mock_engine import answer, next_token
from tests.paged_mock_engine import PagedMockEngine

TOKENS, STEP_S = 12, 0.03


class Bench:
    """A scheduler on few pages of four tokens, stepped by hand."""

    def __init__(self, pages: int, step_tokens: int = 64, chunk_tokens: int = 16) -> None:
        self.now_s = 0.0
        self.engine = PagedMockEngine(pages, max_sequences=64)
        limits = SchedulerSettings(step_tokens, chunk_tokens)
        self.scheduler = Scheduler(self.engine, limits, clock=lambda: self.now_s)
        self.sessions: list[Session] = []
        self.added = 0

    def add(self, prompt: list[int], patience_ms: int = 0, priority: int = 0) -> Session:
        number, self.added = self.added, self.added + 1
        session = Session(
            session_id=f"{number:04}",
            sampler=Sampler(SamplingParams(), number, len(prompt)),
            line=VerifierTree(list(prompt)),
            text=AnswerText(LetterStream(), ()),
            stop_ids=frozenset(),
            max_length=len(prompt) + TOKENS,
            max_lookahead=16,
            max_nodes=32,
            patience=Patience(patience_ms),
            ready_since_s=self.now_s,
            priority=priority,
        )
        session.sent = session.line.length
        self.sessions.append(session)
        self.scheduler.add(session)
        return session

    def step(self, meanwhile: Callable[[], None] = lambda: None) -> list[Session]:
        """Who took part. meanwhile: happens while the engine evaluates."""
        self.scheduler._free_ended()
        plan = self.scheduler._plan()
        results = self.scheduler._stepping.step(plan)
        meanwhile()
        self.now_s += STEP_S
        if plan:
            self.scheduler._apply(plan, results, self.now_s - STEP_S, self.now_s)
        return [planned.session for planned in plan]

    def holds(self, session: Session) -> bool:
        """Whether the engine has its keys and values."""
        return session.sequence is not None

    def words(self, session: Session) -> list[int]:
        return answer(session.line.log[: session.prompt_length], int(session.session_id), TOKENS)

    def finish(self, steps: int) -> None:
        for _ in range(steps):
            if all(session.over for session in self.sessions):
                break
            self.step()
        for session in self.sessions:
            assert session.error is None
            assert session.answer == self.words(session)
        self.scheduler._free_ended()
        assert self.engine.empty


def draw(bench: Bench, session: Session, chance: random.Random, nodes: int = 12) -> None:
    """Sends a random tree: right and wrong guesses, repeated ones, on whatever came before in it."""
    log, seed = session.line.log, int(session.session_id)
    paths: list[list[int]] = []
    parents: list[int] = []
    for index in range(chance.randrange(1, nodes)):
        on = chance.choice((-1, *range(index)))
        path = paths[on] if on >= 0 else []
        right = next_token([*log, *path], seed)
        paths.append([*path, right if chance.random() < 0.6 else chance.randrange(2, 60)])
        parents.append(index - on if on >= 0 else 0)
    tokens = [path[-1] for path in paths]
    session.draft(len(log), tokens, len(log), [chance.random() for _ in tokens], bench.now_s, parents=parents)


def test_what_an_earlier_session_has_read_is_counted_once() -> None:
    bench = Bench(pages=40)
    beginning = list(range(10, 20))
    first = bench.add(beginning)
    bench.finish(40)
    second = bench.add([*beginning, *first.answer, 30, 31])
    bench.step()
    stepping = bench.scheduler._stepping
    assert isinstance(stepping, BlockStepping)
    stepping.seats.give_up(second)  # it finds its own pages when it comes back, which is no gift
    bench.finish(40)
    assert first.found == 0
    assert second.found == 20  # of 22, the last of which was never read, in pages of four


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(12, 40))
def test_whatever_happens_all_words_come_and_all_memory_is_free_at_the_end(seed: int, pages: int) -> None:
    chance = random.Random(seed)
    bench = Bench(pages, chance.choice((3, 8, 64)), chance.choice((2, 16, 64)))
    beginning = [chance.randrange(60) for _ in range(20)]
    for _ in range(200):
        roll = chance.random()
        going = [session for session in bench.sessions if not session.over]
        if roll < 0.2 and len(bench.sessions) < 12:
            own = [chance.randrange(60) for _ in range(1 + chance.randrange(10))]
            bench.add(beginning[: chance.randrange(21)] + own, chance.choice((0, 0, 50)), chance.randrange(-1, 2))
        elif roll < 0.3 and going:
            session = chance.choice(going)
            session.attached = not session.attached
        elif roll < 0.5 and going:
            session = chance.choice(going)
            length = session.line.length
            guesses = answer(session.line.log, int(session.session_id), chance.randrange(8))
            guesses = [token if chance.random() < 0.8 else token ^ 1 for token in guesses]
            session.draft(length, guesses, length, [0.5] * len(guesses), bench.now_s)
        elif roll < 0.8 and going:
            draw(bench, chance.choice(going), chance)

        def cancel() -> None:
            session = chance.choice(bench.sessions)
            if not session.over:
                session.finish = FinishReason.CANCELLED
                bench.scheduler.remove(session)
            bench.sessions.remove(session)

        bench.step(cancel if bench.sessions and chance.random() < 0.03 else lambda: None)
    for session in bench.sessions:
        session.attached = True
    bench.finish(4000)


def test_an_idle_session_makes_room_and_goes_on_with_the_same_words() -> None:
    bench = Bench(pages=8)
    idle = bench.add([5] * 20, PATIENCE_UNLIMITED_MS)
    bench.step()
    bench.step()
    assert bench.holds(idle)
    bench.now_s += 2
    other = bench.add([6] * 19)
    while not other.over:
        bench.step()
    figures = bench.scheduler.counters
    assert not bench.holds(idle)
    assert figures.preemptions == 1
    assert idle.due_s(128) is None, "its log is not read again before it has something to do"
    length = idle.line.length
    idle.draft(length, bench.words(idle)[length - 20 : length - 16], length, [1.0] * 4, bench.now_s)
    bench.step()
    bench.step()
    assert idle.line.length == length + 5
    idle.half_closed = True
    bench.finish(100)


def test_a_senior_takes_room_from_a_junior_and_not_the_other_way_round() -> None:
    bench = Bench(pages=9)
    senior = bench.add([5] * 18)
    bench.step()
    bench.now_s += 0.01
    junior = bench.add([6] * 14)
    while not senior.over:
        bench.step()
        assert bench.holds(senior) or senior.over
    assert not junior.over
    assert bench.scheduler.counters.preemptions >= 1
    bench.finish(200)


def test_a_prompt_once_begun_is_read_to_its_end() -> None:
    bench = Bench(pages=13, chunk_tokens=4)
    senior = bench.add([5] * 16, PATIENCE_UNLIMITED_MS)
    while senior.line.length == 16:
        bench.step()
    bench.now_s += 2
    reader = bench.add([6] * 40)
    bench.step()
    assert not bench.holds(senior)
    senior.draft(senior.line.length, [1], senior.line.length, [0.5], bench.now_s)
    while reader.line.length == 40:
        assert reader in bench.step()
    bench.step()
    assert bench.holds(senior)
    senior.half_closed = True
    bench.finish(400)


def test_twigs_are_right_and_kept_where_pages_are_few() -> None:
    """The first guess at every place is wrong, so that twigs are right, one off another, until the session believes
    second guesses more."""
    bench = Bench(pages=40)
    session = bench.add([5] * 6)
    bench.step()
    while not session.over:
        log = list(session.line.log)
        right = bench.words(session)[len(log) - 6 :][:3]
        tokens = [token for good in right for token in (good ^ 1, good)]
        parents = [0, 0, 1, 2, 1, 2][: len(tokens)]
        session.draft(len(log), tokens, len(log), [0.5, 0.4] * len(right), bench.now_s, parents=parents)
        bench.step()
        assert session.line.length == min(len(log) + 4, 6 + TOKENS)
    assert bench.engine.twigs
    bench.finish(0)


def test_without_room_for_a_tree_its_likeliest_line_is_checked() -> None:
    bench = Bench(pages=5)
    session = bench.add([5] * 6)
    bench.step()
    log = list(session.line.log)
    first, second, third = bench.words(session)[1:4]
    tokens, parents = [first, first ^ 1, second, third, third ^ 1, third ^ 3], [0, 0, 2, 1, 2, 3]
    session.draft(len(log), tokens, len(log), [0.9, 0.1, 0.9, 0.9, 0.1, 0.1], bench.now_s, parents=parents)
    bench.step()
    assert session.statistics.verified_tokens == 3  # six would be a trunk in three pages, and three twigs
    assert session.line.length == len(log) + 4
    bench.finish(100)


def test_a_step_that_fails_for_one_leaves_the_trees_of_others() -> None:
    bench = Bench(pages=60)
    good, bad = bench.add([5] * 7), bench.add([6] * 7)
    bench.step()
    log = list(good.line.log)
    right = bench.words(good)[1:3]
    tokens, parents = [right[0] ^ 1, right[0], right[1] ^ 1, right[1]], [0, 0, 1, 2]
    good.draft(len(log), tokens, len(log), [0.5] * 4, bench.now_s, parents=parents)
    bench.engine.poison = 0  # which nobody else says
    bad.draft(bad.line.length, [0, 0, 2], bad.line.length, [0.9] * 3, bench.now_s, parents=[0, 1, 2])
    bench.step()
    assert bad.error is not None
    assert good.line.length == len(log) + 3
    bench.sessions.remove(bad)
    bench.finish(100)


def test_a_session_that_is_cancelled_while_its_tree_is_evaluated_leaves_nothing() -> None:
    bench = Bench(pages=60)
    stays, goes = bench.add([5] * 7), bench.add([6] * 7)
    bench.step()
    for session in (stays, goes):
        log = list(session.line.log)
        right = bench.words(session)[1:3]
        tokens, parents = [right[0] ^ 1, right[0], right[1] ^ 1, right[1]], [0, 0, 1, 2]
        session.draft(len(log), tokens, len(log), [0.5] * 4, bench.now_s, parents=parents)

    def cancel() -> None:
        goes.finish = FinishReason.CANCELLED
        bench.scheduler.remove(goes)
        bench.sessions.remove(goes)

    assert len(bench.step(cancel)) == 2
    bench.step()
    assert not bench.holds(goes)
    bench.finish(100)


def test_guesses_take_nobodys_room() -> None:
    bench = Bench(pages=6, chunk_tokens=64)
    first, second = bench.add([5] * 10), bench.add([6] * 10)
    bench.step()
    for session in (first, second):
        guesses = bench.words(session)[1:9]
        session.draft(11, guesses, 11, [0.9] * 8, bench.now_s)
    assert len(bench.step()) == 2
    assert bench.scheduler.counters.preemptions == 0
    assert bench.scheduler.counters.trimmed_draft_tokens > 0


def test_an_equal_beginning_is_read_once() -> None:
    bench = Bench(pages=40)
    first = bench.add([7] * 24 + [1])
    while not first.over:
        bench.step()
    before = bench.scheduler.counters.prompt_positions
    second = bench.add([7] * 24 + [2])
    bench.finish(100)
    figures = bench.scheduler.counters
    assert figures.prompt_positions - before == 1
    assert (figures.prefix_query_tokens, figures.prefix_hit_tokens) == (50, 24)
    assert figures.pages_total == 40
    assert second.answer != first.answer


def test_a_session_that_can_never_have_room_is_told_so() -> None:
    bench = Bench(pages=2)
    session = bench.add([5] * 12)
    bench.step()
    assert session.error is not None
    assert session.error.reason == "ENGINE_FAILED"


@pytest.mark.parametrize("priorities", [(0, 0, 0, 5), (-3, -3, 2, 2)])
def test_priority_goes_first_and_nobody_starves(priorities: tuple[int, ...]) -> None:
    bench = Bench(pages=60, step_tokens=1)
    for priority in priorities:
        bench.add([5 + bench.added], priority=priority)
    ended: list[Session] = []
    for _ in range(4 * TOKENS):
        bench.step()
        ended += [session for session in bench.sessions if session.over and session not in ended]
    order = [session.priority for session in ended]
    assert order == sorted(order, reverse=True)
    low = bench.add([50], priority=-2)
    begun_s = bench.now_s
    while low.line.length == 1:  # others of no priority come without end
        if sum(not session.over for session in bench.sessions) < 4:
            bench.add([9, bench.added % 60])
        bench.step()
    assert bench.now_s - begun_s < 2.0 + 5 * STEP_S
