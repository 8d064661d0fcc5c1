"""A trial in the simulator: the product's pace, line, budget and patience, on a clock that costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from simpy import Environment

from benchmarks.load.answers import Job, described, jobs
from benchmarks.load.outcome import Outcome, outcome
from benchmarks.load.profile import MemoryBound
from benchmarks.load.seat import Port, Seat, pace_of
from netlab.simulator.device import DeviceSettings
from netlab.simulator.link import Link
from netlab.simulator.messages import Commit, Draft
from netlab.simulator.verifier import Session, Verifier, VerifierSettings
from speculation.pace.base import Pace


@dataclass(frozen=True)
class Setting:
    """What all trials of a search have in common. Times in milliseconds, of the emulated world.

    chunk_tokens: of one prompt in a step. watch_ms: how long a trial is watched, after warm_ms.
    """

    profile: MemoryBound = field(default_factory=MemoryBound)
    rtt_ms: float = 50.0
    draft_ms: float = 5.0
    acceptance: float = 0.8
    warm_ms: float = 4000.0
    watch_ms: float = 12_000.0
    chunk_tokens: int = 256

    @property
    def window_ms(self) -> tuple[float, float]:
        """When a trial is watched."""
        return self.warm_ms, self.warm_ms + self.watch_ms

    def starts_ms(self, index: int, sessions: int) -> float:
        """Preemption are taken one after the other, during the first quarter of the warm-up."""
        return self.warm_ms / 4 * index / sessions


class SimulatedPort(Port):
    """Sessions of one simulated verifier."""

    def __init__(self, env: Environment, verifier: Verifier) -> None:
        self._env, self._verifier = env, verifier

    def open(
        self, job: Job, pace: Pace, opened: Callable[[int], None], hear: Callable[[Commit], None]
    ) -> Callable[[Draft], None]:
        verifier, settings = self._verifier, self._verifier.settings
        session = Session(
            job.written.prompt, job.words, pace.patience_ms, self._env.now, hear, settings, pace.objective
        )
        verifier.add(session)
        opened(settings.max_lookahead)
        return lambda draft: verifier.draft(session, draft)


def trial(mode: str, sessions: int, setting: Setting) -> Outcome:
    """Play one trial."""
    env = Environment()
    profile = setting.profile
    verifier = Verifier(env, VerifierSettings(profile, profile.free_positions, setting.chunk_tokens))
    port, written = SimulatedPort(env, verifier), described(32)
    seats = [
        Seat(
            env,
            port,
            Link.of_rtt(setting.rtt_ms, seed=index),
            pace_of(mode),
            jobs(written, setting.acceptance, str(index)),
            DeviceSettings(setting.draft_ms),
            setting.starts_ms(index, sessions),
        )
        for index in range(sessions)
    ]
    begin, end = setting.window_ms
    env.run(begin)
    steps, busy_ms = verifier.steps, verifier.busy_ms
    env.run(end)
    worked_ms = verifier.busy_ms - busy_ms
    step_ms = worked_ms / max(1, verifier.steps - steps)
    return outcome(mode, [seat.notes for seat in seats], setting.window_ms, worked_ms / (end - begin), step_ms)
