"""Policies compared over a grid of conditions, each on the very same answers and links."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from netlab.link_settings import LinkSettings
from netlab.simulator import policies
from netlab.simulator.co_located import LENGTHS, Streamed, co_located
from netlab.simulator.device import DeviceSettings
from netlab.simulator.link import Link
from netlab.simulator.oracle import Bound, oracle
from netlab.simulator.pair import Answer, Pair
from netlab.simulator.policies import CO_LOCATED, ORACLE, Policy
from netlab.simulator.run import Played, Result, Rider, simulate_in_groups
from netlab.simulator.verifier import StepTime, VerifierSettings
from speculation.pace.adaptive import Adaptive
from speculation.pace.base import Pace, Streaming

MOST_MS = 120_000.0
MOST_TIPS = 4  # of a drafter that looks at several at once, as llama.cpp's
APART_MS = 7919.0  # answers begin at places of traces and outages that lie so far apart


class GridError(ValueError):
    """A grid that cannot be simulated. The message is a sentence."""


@dataclass(frozen=True)
class Cell:
    """One combination of conditions."""

    pair: Pair
    rtt_ms: float
    draft_ms: float
    step_ms: float


@dataclass(frozen=True)
class Grid:
    """What to compare, and where. Every combination of pairs, rtts_ms, drafts_ms and steps_ms is a cell.

    network: how the links of all cells behave beyond their round trip; each answer has its own seed and begins at
    another place in traces and outages. rtts_ms: None for the network's own round trip. answers: per cell and policy,
    of `tokens` tokens each. feed_share, tip_share: time to read one more token, and to draw at one more tip in the same
    evaluation, as a share of a guess's; tip_share None for a drafter that looks at one tip at a time. devices: so many
    answers at a time, opened evenly over a step, share so many verifiers.
    Raises GridError for what cannot be simulated and PolicyError for unknown policies.
    """

    pairs: Sequence[Pair]
    rtts_ms: Sequence[float] | None = (0.0, 20.0, 50.0, 100.0, 200.0, 400.0)
    drafts_ms: Sequence[float] = (5.0,)
    steps_ms: Sequence[float] = (30.0,)
    policies: Sequence[str] = ()
    answers: int = 24
    tokens: int = 128
    seed: int = 1
    network: LinkSettings = field(default_factory=LinkSettings)
    per_position_ms: float = 0.0
    feed_share: float = 0.0
    tip_share: float | None = None
    devices: int = 1
    verifiers: int = 1

    def __post_init__(self) -> None:
        """Refuse before anything runs."""
        policies.check(self.policies)
        for name, values, least in (
            ("round trip", self.round_trips_ms(), 0.0),
            ("draft time", self.drafts_ms, 0.01),
            ("step time", self.steps_ms, 0.01),
        ):
            for value in values:
                if not least <= value <= MOST_MS:
                    raise GridError(f"a {name} of {value:g} ms cannot be simulated; it takes {least:g} to {MOST_MS:g}")
            if len(set(values)) != len(values):
                raise GridError(f"a {name} stands in the grid twice: {', '.join(f'{value:g}' for value in values)}")
        for name, count in (
            ("pair", len(self.pairs)),
            ("round trip", len(self.round_trips_ms())),
            ("policy", len(self.policies)),
        ):
            if not count:
                raise GridError(f"the grid is empty: it has no {name}")
        for name, number, least_number in (
            ("answers", self.answers, 1),
            ("tokens", self.tokens, 2),
            ("devices", self.devices, 1),
            ("verifiers", self.verifiers, 1),
        ):
            if number < least_number:
                raise GridError(f"a grid needs at least {least_number} {name}, not {number}")
        if self.devices > 1 and CO_LOCATED in self.policies:
            raise GridError(f"{CO_LOCATED} is simulated for one answer at a time; leave it out beside --devices")
        if not 0 <= self.feed_share <= 1:
            raise GridError(f"feed_share is {self.feed_share:g}; it takes 0 to 1")
        if self.tip_share is not None and not 0 <= self.tip_share <= 1:
            raise GridError(f"tip_share is {self.tip_share:g}; it takes 0 to 1")
        if not 0 <= self.per_position_ms <= MOST_MS:
            raise GridError(f"per_position_ms is {self.per_position_ms:g}; it takes 0 to {MOST_MS:g}")

    def round_trips_ms(self) -> Sequence[float]:
        """Of the cells."""
        return (self.network.rtt_ms,) if self.rtts_ms is None else self.rtts_ms

    def link(self, rtt_ms: float, index: int) -> Link:
        """Of answer number `index` in a cell of this round trip."""
        settings = self.network if self.rtts_ms is None else self.network.with_rtt(rtt_ms)
        return Link.of_settings(settings, offset_ms=index * APART_MS, seed=settings.seed + index)

    def cells(self) -> list[Cell]:
        """All combinations, the round trip changing fastest."""
        return [
            Cell(pair, rtt, draft, step)
            for pair, step, draft, rtt in itertools.product(
                self.pairs, self.steps_ms, self.drafts_ms, self.round_trips_ms()
            )
        ]

    def runs(self) -> int:
        """How many times a candidate plays a cell's answers, for a progress bar."""
        each = 1 + sum(max(1, len(policies.find(name).candidates)) for name in self.policies)
        return each * len(self.cells())


class Outcome(Protocol):
    """What results and bounds have in common."""

    @property
    def tokens(self) -> int: ...
    @property
    def total_ms(self) -> float: ...
    @property
    def ms_per_token(self) -> float: ...
    @property
    def target_forwards(self) -> int: ...


@dataclass(frozen=True)
class Row:
    """A policy in a cell.

    candidate: which of the policy's paces it was, the best in hindsight. busy_ms: the verifier's, for all answers; NaN
    for the oracle. over_streaming, over_oracle: ratios of total time, answer by answer.
    """

    cell: Cell
    policy: str
    candidate: str
    outcomes: Sequence[Outcome]
    busy_ms: float
    over_streaming: Sequence[float]
    over_oracle: Sequence[float]

    @property
    def ms_per_token(self) -> float:
        """Median over the answers."""
        return _median([outcome.ms_per_token for outcome in self.outcomes])

    def as_json(self) -> dict[str, Any]:
        """As in the results of `netlab simulate --json`."""
        results = [outcome for outcome in self.outcomes if isinstance(outcome, Result)]
        tokens = sum(outcome.tokens for outcome in self.outcomes)
        verified = sum(result.verified_tokens for result in results)
        accepted = sum(result.accepted_tokens for result in results)
        return {
            "rtt_ms": self.cell.rtt_ms,
            "pair": self.cell.pair.name,
            "draft_ms": self.cell.draft_ms,
            "step_ms": self.cell.step_ms,
            "policy": self.policy,
            "candidate": self.candidate,
            "ms_per_token_p50": round(self.ms_per_token, 3),
            "total_over_streaming_p50": round(_median(self.over_streaming), 4),
            "total_over_streaming_p95": round(float(np.percentile(self.over_streaming, 95)), 4),
            "total_over_oracle_p50": round(_median(self.over_oracle), 4),
            "target_forwards_per_token": round(sum(o.target_forwards for o in self.outcomes) / tokens, 4),
            "verifier_ms_per_token": round(self.busy_ms / tokens, 3) if results else None,
            "acceptance": round(accepted / verified, 4) if verified else None,
            "drafted_per_token": round(sum(r.drafted_tokens for r in results) / tokens, 3) if results else None,
            "uplink_bytes_per_token": round(sum(r.uplink_bytes for r in results) / tokens, 2) if results else None,
            "downlink_bytes_per_token": round(sum(r.downlink_bytes for r in results) / tokens, 2) if results else None,
            "same_words": all(result.same_words for result in results),
        }


def sweep(grid: Grid, on_run: Callable[[], object] = lambda: None) -> Iterator[Row]:
    """Play the grid, cell by cell. on_run: called `grid.runs()` times."""
    for cell in grid.cells():
        settings = VerifierSettings(StepTime(cell.step_ms, grid.per_position_ms))
        answers = cell.pair.answers(grid.answers, grid.tokens, grid.seed)
        stage = _Stage(cell, answers, settings, grid)
        streaming = stage.play(Streaming)
        bounds = stage.bounds()
        on_run()
        for name in grid.policies:
            yield _row(stage, policies.find(name), streaming, bounds, on_run)


@dataclass(frozen=True)
class _Stage:
    """A cell with its answers, ready to play them as often as needed."""

    cell: Cell
    answers: list[Answer]
    settings: VerifierSettings
    grid: Grid

    def play(self, make: Callable[[], Pace]) -> Played:
        """Every answer with a fresh pace and a fresh link, alone or in company."""
        grid, draft_ms = self.grid, self.cell.draft_ms
        device = DeviceSettings(draft_ms, grid.feed_share * draft_ms)
        if grid.tip_share is not None:
            device = replace(device, most_tips=MOST_TIPS, tip_ms=grid.tip_share * draft_ms)
        riders = [Rider(answer, self._link(index), make(), device) for index, answer in enumerate(self.answers)]
        apart_ms = self.cell.step_ms / grid.devices
        return simulate_in_groups(riders, grid.devices, apart_ms, self.settings, grid.verifiers)

    def bounds(self) -> list[Bound]:
        """The oracle's."""
        return [
            oracle(answer.within(Adaptive().width), self._link(index), self.cell.draft_ms, self.settings)
            for index, answer in enumerate(self.answers)
        ]

    def co_located(self, length: int) -> list[Streamed]:
        """A server with the device's drafter beside the target."""
        return [
            co_located(answer, self._link(index), self.cell.draft_ms, length, self.settings)
            for index, answer in enumerate(self.answers)
        ]

    def _link(self, index: int) -> Link:
        return self.grid.link(self.cell.rtt_ms, index)


def _row(stage: _Stage, policy: Policy, streaming: Played, bounds: list[Bound], on_run: Callable[[], object]) -> Row:
    played: dict[str, Sequence[Outcome]] = {}
    busy_ms: dict[str, float] = {}
    for name, make in policy.candidates.items():
        run = streaming if make is Streaming else stage.play(make)
        played[name], busy_ms[name] = run.results, run.busy_ms
        on_run()
    if policy.name == ORACLE:
        played[ORACLE] = bounds
        busy_ms[ORACLE] = math.nan
        on_run()
    if policy.name == CO_LOCATED:
        for length in LENGTHS:
            served = stage.co_located(length)
            name = f"{CO_LOCATED}:{length}"
            played[name], busy_ms[name] = served, sum(one.busy_ms for one in served)
        on_run()
    candidate = min(played, key=lambda name: sum(outcome.ms_per_token for outcome in played[name]))
    outcomes = played[candidate]
    return Row(
        stage.cell,
        policy.name,
        candidate,
        outcomes,
        busy_ms[candidate],
        [ours.total_ms / theirs.total_ms for ours, theirs in zip(outcomes, streaming.results, strict=True)],
        [ours.total_ms / best.total_ms for ours, best in zip(outcomes, bounds, strict=True)],
    )


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))
