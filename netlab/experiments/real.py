"""A cell of a grid on the real programs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edge_client.drafters.base import DrafterError
from edge_client.types import RequestOutput
from netlab import profiles
from netlab.experiments import conditions, drafters
from netlab.experiments.conditions import Condition
from netlab.experiments.grid import Cell, Grid, GridError
from netlab.experiments.rig import Rig
from netlab.experiments.rows import Origin, Row
from netlab.prompts import OPENINGS
from netlab.race import Lane, chat
from speculation.pace import policies
from speculation.pace.base import Pace
from speculation.pace.observed import Diary, Observed
from speculation.sampling import SamplingParams

STREAMING = "streaming"
SEED_STRIDE = 1000  # seeds of a cell's answers lie between its own and the next cell's


def check(grid: Grid) -> None:
    """Refuse what the real programs cannot run. Raises GridError."""
    for name in ("acceptance", "recordings", "shape", "per_position_ms", "per_session_ms"):
        if name in grid.given:
            raise GridError(
                f"{name} is the simulator's, and the real programs have their own; "
                "leave it out, or run the grid with --simulate"
            )
    try:
        for name in grid.policies:
            policies.find(name)
        for name in grid.profiles:
            profiles.find(name)
        drafters.load(grid.drafter, 0.0, 2, "")
    except (ValueError, DrafterError) as error:
        raise GridError(str(error)) from error


def least_hours(grid: Grid) -> float:
    """How long the grid takes if every answer only streams, waiting for the network left out."""
    answers = len(grid.cells()) * grid.answers * len({STREAMING, *grid.policies})
    mean_step_ms = sum(grid.step_ms) / len(grid.step_ms)
    at_once = len(grid.devices) / sum(1 / devices for devices in grid.devices)
    return answers * grid.tokens * mean_step_ms / at_once / 3_600_000


def run(rig: Rig, cell: Cell, origin: Origin, on_answer: Callable[[str], object] = lambda _: None) -> list[Row]:
    """Every policy on the cell's prompts, interleaved, with as many answers at a time as devices share the verifier.

    rig: with the cell's step time. on_answer: told what has just been done. Raises DrafterError, SessionError,
    LinkProcessError.
    """
    teams = {name: [f"{name} {device}" for device in range(cell.devices)] for name in (STREAMING, *cell.policies)}
    wanted = {lane: name for name, lanes in teams.items() for lane in lanes}
    diaries: dict[str, Diary] = {}

    def watch(lane: str, pace: Pace) -> Pace:
        diaries[lane] = Diary()
        return Observed(pace, diaries[lane])

    stage = _Stage(rig, cell, conditions.of_cell(cell), diaries)
    rig.link.configure(stage.condition.settings)
    with rig.lanes(wanted, cell.drafter, cell.draft_ms, watch) as lanes:
        by_name = {lane.name: lane for lane in lanes}
        crews = {name: [by_name[lane] for lane in team] for name, team in teams.items()}
        for crew in crews.values():
            _tune(crew, stage)
        names = list(crews)
        for turn, first in enumerate(range(0, cell.answers, cell.devices)):
            # In another order each time, so that no policy has the machine's better moments.
            shift = turn % len(names)
            for name in (*names[shift:], *names[:shift]):
                stage.play(name, crews[name], range(first, min(first + cell.devices, cell.answers)))
                on_answer(name)
        return stage.rows(origin, {name: crew[0].candidate for name, crew in crews.items()})


def _tune(crew: Sequence[Lane], stage: _Stage) -> None:
    """One of them finds the best length, alone; the others take it over."""
    crew[0].tune(stage.params, seed=stage.cell.seed)
    best = crew[0].best_sync
    for lane in crew[1:]:
        if best is not None and lane.best_sync is not None:
            lane.best_sync.draft_tokens = best.draft_tokens


@dataclass(frozen=True)
class _Played:
    """One answer, with its share of what the link carried meanwhile."""

    output: RequestOutput
    lookahead_tokens: float | None
    uplink_bytes: int
    downlink_bytes: int


@dataclass
class _Stage:
    """A cell and what has been played of it. diaries: of every lane's latest session."""

    rig: Rig
    cell: Cell
    condition: Condition
    diaries: dict[str, Diary]
    played: dict[str, dict[int, _Played]] = field(default_factory=dict)

    @property
    def params(self) -> SamplingParams:
        """Of every answer."""
        return SamplingParams(temperature=self.cell.temperature, max_tokens=self.cell.tokens, ignore_eos=True)

    def play(self, name: str, crew: Sequence[Lane], answers: Sequence[int]) -> None:
        """These answers at once, one lane each. Raises what the first lane to fail raised."""
        self.rig.link.configure(self.condition.for_answer(answers[0]))
        before = self.rig.link.counters()
        outputs: dict[int, RequestOutput] = {}
        failures: list[Exception] = []

        def answer(lane: Lane, index: int) -> None:
            prompt = chat(OPENINGS[index % len(OPENINGS)])
            try:
                outputs[index] = lane.answer(prompt, self.params, self.cell.seed * SEED_STRIDE + index)
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=answer, args=each) for each in zip(crew, answers, strict=False)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        carried = self.rig.link.counters().since(before)
        for lane, index in zip(crew, answers, strict=False):
            self.played.setdefault(name, {})[index] = _Played(
                outputs[index],
                self.diaries[lane.name].lookahead_tokens,
                carried.bytes_up // len(answers),
                carried.bytes_down // len(answers),
            )

    def rows(self, origin: Origin, candidates: dict[str, str]) -> list[Row]:
        """One per policy and answer."""
        return [
            self._row(origin, name, candidates[name], index)
            for name in self.cell.policies
            for index in range(self.cell.answers)
        ]

    def _row(self, origin: Origin, name: str, candidate: str, index: int) -> Row:
        cell, played = self.cell, self.played[name][index]
        streaming = self.played[STREAMING][index].output
        output, metrics = played.output, played.output.metrics
        tokens = len(output.token_ids)
        return Row(
            cell=cell.key,
            mode=origin.mode,
            commit=origin.commit,
            policy=name,
            candidate=candidate,
            rtt_ms=self.condition.rtt_ms,
            jitter_ms=self.condition.settings.jitter_ms,
            profile=self.condition.profile,
            pair=f"{cell.target} with {cell.drafter}, T = {cell.temperature:g}",
            draft_ms=cell.draft_ms,
            step_ms=cell.step_ms,
            devices=cell.devices,
            seed=cell.seed,
            answer=index,
            tokens=tokens,
            ttft_ms=metrics.ttft_ms,
            total_ms=metrics.total_ms,
            ms_per_token=metrics.ms_per_token,
            total_over_streaming=metrics.total_ms / streaming.metrics.total_ms,
            target_forwards=metrics.target_forwards,
            target_forwards_per_token=metrics.target_forwards / tokens,
            drafted_tokens=metrics.drafted_tokens,
            verified_tokens=metrics.verified_tokens,
            accepted_tokens=metrics.accepted_tokens,
            lookahead_tokens=played.lookahead_tokens,
            uplink_bytes=played.uplink_bytes,
            downlink_bytes=played.downlink_bytes,
            verifier_ms_per_token=None,
            verifier_steps_per_token=None,
            same_words=output.token_ids == streaming.token_ids,
        )
