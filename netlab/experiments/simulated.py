"""A cell of a grid in the simulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from netlab import profiles
from netlab.experiments import conditions
from netlab.experiments.conditions import Condition
from netlab.experiments.grid import Cell, Grid, GridError
from netlab.experiments.rows import Origin, Row
from netlab.simulator import pair as pairs
from netlab.simulator import policies, recording
from netlab.simulator.device import DeviceSettings
from netlab.simulator.link import Link
from netlab.simulator.pair import Answer, Pair
from netlab.simulator.run import Result, Rider, simulate_in_groups
from netlab.simulator.verifier import StepTime, VerifierSettings
from speculation.pace.base import Pace, Streaming
from speculation.pace.observed import Diary, Observed


def check(grid: Grid) -> None:
    """Refuse what the simulator cannot run. Raises GridError."""
    if not grid.acceptance and not grid.recordings:
        raise GridError("a simulated grid needs acceptance = [...] or recordings = [...] (see netlab record)")
    if 0 in grid.draft_ms:
        raise GridError("draft_ms names 0, but a simulated guess takes time; 0.1 is next to nothing")
    for name in ("temperature", "drafter", "target"):
        if name in grid.given:
            raise GridError(f"a simulated pair has no {name}; leave it out, or run the grid with --real")
    try:
        policies.check(grid.policies)
        for name in grid.profiles:
            profiles.find(name)
        for name in grid.recordings:
            recording.read(Path(name))
    except ValueError as error:
        raise GridError(str(error)) from error
    for name in policies.NO_PACES:
        if name in grid.policies:
            raise GridError(f"{name} is no pace of a device; netlab simulate shows it beside them")


def plays(grid: Grid) -> int:
    """How many answers will be simulated, all candidates of all policies counted."""
    each = 1 + sum(len(policies.find(name).candidates) for name in grid.policies)
    return each * grid.answers * len(grid.cells())


def run(cell: Cell, origin: Origin) -> list[Row]:
    """Every policy on the cell's answers; of a policy with several paces, the best in hindsight.

    Raises PaceError.
    """
    stage = _Stage.of(cell)
    streaming = stage.play("streaming", Streaming)
    rows = []
    for name in cell.policies:
        candidates = policies.find(name).candidates
        played = [
            streaming if make is Streaming else stage.play(candidate, make) for candidate, make in candidates.items()
        ]
        best = min(played, key=lambda one: sum(result.ms_per_token for result in one.results))
        rows += stage.rows(origin, name, best, streaming)
    return rows


@dataclass(frozen=True)
class _Played:
    """All answers of a cell under one pace."""

    candidate: str
    results: list[Result]
    diaries: list[Diary]
    steps: int
    busy_ms: float


@dataclass(frozen=True)
class _Stage:
    """A cell with its answers and network, ready to play them as often as needed."""

    cell: Cell
    pair: Pair
    answers: list[Answer]
    condition: Condition

    @classmethod
    def of(cls, cell: Cell) -> _Stage:
        pair = _pair(cell)
        # A recording's seed is the number of its first answer: the next seed goes on where this one ends.
        seed = cell.seed if cell.recording is None else cell.seed * cell.answers
        return cls(cell, pair, pair.answers(cell.answers, cell.tokens, seed), conditions.of_cell(cell))

    def play(self, candidate: str, make: Callable[[], Pace]) -> _Played:
        """Every answer with a fresh pace and link, as many at a time as devices share the verifier."""
        cell = self.cell
        verifier = VerifierSettings(StepTime(cell.step_ms, cell.per_position_ms, cell.per_session_ms))
        diaries = [Diary() for _ in self.answers]
        riders = [
            Rider(
                answer,
                Link.of_settings(self.condition.for_answer(index), seed=cell.seed * cell.answers + index),
                Observed(make(), diaries[index]),
                DeviceSettings(cell.draft_ms),
            )
            for index, answer in enumerate(self.answers)
        ]
        played = simulate_in_groups(riders, cell.devices, cell.step_ms / cell.devices, verifier)
        return _Played(candidate, played.results, diaries, played.steps, played.busy_ms)

    def rows(self, origin: Origin, policy: str, played: _Played, streaming: _Played) -> list[Row]:
        """One per answer."""
        cell, tokens = self.cell, sum(result.tokens for result in played.results)
        return [
            Row(
                cell=cell.key,
                mode=origin.mode,
                commit=origin.commit,
                policy=policy,
                candidate=played.candidate,
                rtt_ms=self.condition.rtt_ms,
                jitter_ms=self.condition.settings.jitter_ms,
                profile=self.condition.profile,
                pair=self.pair.name if cell.acceptance is None else f"acceptance {cell.acceptance:g}",
                draft_ms=cell.draft_ms,
                step_ms=cell.step_ms,
                devices=cell.devices,
                seed=cell.seed,
                answer=index,
                tokens=result.tokens,
                ttft_ms=result.ttft_ms,
                total_ms=result.total_ms,
                ms_per_token=result.ms_per_token,
                total_over_streaming=result.total_ms / alone.total_ms,
                target_forwards=result.target_forwards,
                target_forwards_per_token=result.target_forwards / result.tokens,
                drafted_tokens=result.drafted_tokens,
                verified_tokens=result.verified_tokens,
                accepted_tokens=result.accepted_tokens,
                lookahead_tokens=diary.lookahead_tokens,
                uplink_bytes=result.uplink_bytes,
                downlink_bytes=result.downlink_bytes,
                verifier_ms_per_token=played.busy_ms / tokens,
                verifier_steps_per_token=played.steps / tokens,
                same_words=result.same_words,
            )
            for index, (result, alone, diary) in enumerate(
                zip(played.results, streaming.results, played.diaries, strict=True)
            )
        ]


def _pair(cell: Cell) -> Pair:
    if cell.recording is not None:
        return _recorded(cell.recording)
    assert cell.acceptance is not None
    return (pairs.heavy_headed if cell.shape == "heavy" else pairs.independent)(cell.acceptance)


@cache
def _recorded(name: str) -> Pair:
    return recording.read(Path(name)).pair(Path(name).stem)
