"""A seat: one device that asks for one answer after the other, and notes when its tokens come.

The device is the simulator's: the product's pace and line, guesses right where the trial says, the riding loop's order
of things. Where its answers are verified is its `Port`'s business: by a simulated verifier or by a real one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

from simpy import Environment, Event

from benchmarks.load.answers import Job
from netlab.simulator.clock import after
from netlab.simulator.device import Device, DeviceSettings
from netlab.simulator.link import Link
from netlab.simulator.messages import Commit, Draft
from speculation.pace import policies
from speculation.pace.base import Objective, Pace
from speculation.pace.observed import Committed, Diary, Observed


def pace_of(mode: str) -> Callable[[], Pace]:
    """Makes a pace per answer of one seat. mode: "streaming", or the objective of the adaptive pace.

    It draws lines: acceptance is what was asked for only where no second guesses are checked beside the first.
    """
    return policies.find("streaming") if mode == "streaming" else policies.find("adaptive:1", Objective(mode))


class Port(ABC):
    """Where a seat opens its sessions. All times are the trial's milliseconds; links are not its business."""

    @abstractmethod
    def open(
        self, job: Job, pace: Pace, opened: Callable[[int], None], hear: Callable[[Commit], None]
    ) -> Callable[[Draft], None]:
        """Open a session. `opened` is called with the lookahead allowed, `hear` for every commit.

        Returns what takes the device's drafts.
        """


@dataclass
class Notes:
    """What one answer of a seat was like.

    arrivals: when how many tokens came; the first of them ends the waiting. decided, right: of the guesses, those whose
    fate is known. same_words: whether they were the target's own; None until the answer is complete.
    """

    asked_ms: float
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    decided: int = 0
    right: int = 0
    same_words: bool | None = None


class Seat:
    """Asks without a pause from starts_ms on; each answer as long as its job says."""

    def __init__(
        self,
        env: Environment,
        port: Port,
        link: Link,
        make_pace: Callable[[], Pace],
        jobs: Iterator[Job],
        device: DeviceSettings,
        starts_ms: float,
    ) -> None:
        """make_pace: a pace per answer; those of one seat share what they measure."""
        self.notes: list[Notes] = []
        self.port, self.link, self.make_pace, self.device = port, link, make_pace, device
        self._jobs = jobs
        env.process(self._sit(env, starts_ms))

    def _sit(self, env: Environment, starts_ms: float) -> Generator[Event, None, None]:
        yield env.timeout(starts_ms)
        for job in self._jobs:
            done = env.event()
            _Visit(env, self, job, done)
            yield done


class _Visit:
    """One answer: messages through the link, and the notes."""

    def __init__(self, env: Environment, seat: Seat, job: Job, done: Event) -> None:
        self._env, self._seat, self._job, self._done = env, seat, job, done
        self._diary = Diary()
        self._pace = Observed(seat.make_pace(), self._diary)
        self._device = Device(env, job.played, job.written.tokens, self._pace, seat.device, self._send)
        self._notes = Notes(env.now)
        seat.notes.append(self._notes)
        self._up(100 + 3 * len(job.written.prompt), self._ask)

    def _up(self, size_bytes: int, action: Callable[[], object]) -> None:
        after(self._env, self._seat.link.up.arrival_ms(self._env.now, size_bytes) - self._env.now, action)

    def _down(self, size_bytes: int, action: Callable[[], object]) -> None:
        after(self._env, self._seat.link.down.arrival_ms(self._env.now, size_bytes) - self._env.now, action)

    def _ask(self) -> None:
        self._take = self._seat.port.open(self._job, self._pace, self._opened, self._told)

    def _opened(self, lookahead: int) -> None:
        self._down(100, lambda: self._ride(lookahead))

    def _ride(self, lookahead: int) -> None:
        process = self._env.process(self._device.run(self._job.written.prompt, lookahead))
        assert process.callbacks is not None
        process.callbacks.append(self._finished)

    def _send(self, draft: Draft) -> None:
        self._up(draft.size_bytes, lambda: self._take(draft))

    def _told(self, commit: Commit) -> None:
        self._down(commit.size_bytes, lambda: self._hear(commit))

    def _hear(self, commit: Commit) -> None:
        notes = self._notes
        notes.arrivals.append((self._env.now, len(commit.tokens)))
        self._device.hear(commit)

    def _finished(self, process: Event) -> None:
        if not process.ok:
            return
        notes = self._notes
        outcomes = [right for event in self._diary.events if isinstance(event, Committed) for right in event.outcomes]
        notes.decided, notes.right = len(outcomes), sum(outcomes)
        notes.same_words = self._device.line.log[len(self._job.written.prompt) :] == list(self._job.words)
        self._done.succeed()
