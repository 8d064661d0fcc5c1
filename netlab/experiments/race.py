"""Policies raced on the real programs under one network after another.

Every policy answers every prompt under every condition, alone on the link, interleaved; ratios to streaming are taken
prompt by prompt. Streaming always runs, for it is what the ratios are of. Traces and outages are the same for every
policy, but losses and jitter are drawn for every burst anew: a control, streaming once more, says how far apart two
answers are that differ in nothing but these draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from netlab.experiments.conditions import Condition
from netlab.experiments.rig import Rig
from netlab.prompts import PromptSet
from netlab.race import SWEEP, Lane, Run, by_task, chat, interleaved
from speculation.sampling import SamplingParams

STREAMING = "streaming"
CONTROL = "control"  # streaming once more
DEFAULT_POLICIES = (STREAMING, "sync", "pipelined", "server-led", "adaptive")
Row = dict[str, Any]
Words = list[tuple[int, ...]]  # token ids of every answer


@dataclass(frozen=True)
class RaceSettings:
    """What is raced. drafter, draft_ms: as `drafters.load` takes them. seed: of the first prompt; each has its own.

    control: whether streaming runs twice. ignore_eos: every answer has max_tokens; the demo pair then writes both sides
    of a conversation, for its own answers are too short to race over.
    """

    prompts: PromptSet
    policies: Sequence[str] = DEFAULT_POLICIES
    max_tokens: int = 96
    temperature: float = 0.8
    seed: int = 7
    drafter: str = "demo"
    draft_ms: float = 0.0
    control: bool = False
    ignore_eos: bool = True

    @property
    def params(self) -> SamplingParams:
        """Of every answer."""
        return SamplingParams(temperature=self.temperature, max_tokens=self.max_tokens, ignore_eos=self.ignore_eos)

    @property
    def lanes(self) -> dict[str, str]:
        """Name to policy, streaming first."""
        control = {CONTROL: STREAMING} if self.control else {}
        return {STREAMING: STREAMING} | control | {name: name for name in self.policies}

    def answers(self, conditions: int) -> int:
        """How many answers, sweeps of the synchronous lane counted as one each, for a progress bar."""
        return conditions * (len(self.lanes) * len(self.prompts.prompts) + ("sync" in self.lanes))


def race(
    rig: Rig, settings: RaceSettings, conditions: Sequence[Condition], on_answer: Callable[[str], object]
) -> Iterator[Row]:
    """One row per condition and policy, condition by condition. on_answer: told what has just been done.

    Raises DrafterError, PolicyError, SessionError, LinkProcessError.
    """
    words: Words | None = None
    with rig.lanes(settings.lanes, settings.drafter, settings.draft_ms) as lanes:
        for condition in conditions:
            rig.configure(condition.settings)
            for lane in lanes:
                lane.runs.clear()
                lane.tune(settings.params, seed=settings.seed)
                if lane.best_sync is not None:
                    on_answer(f"{condition}: {lane.candidate} is the best of {', '.join(map(str, SWEEP))}")
            for lane, index in interleaved(lanes, settings.prompts.prompts):
                rig.configure(condition.for_answer(index))
                lane.measure(
                    rig.link_of(lane), chat(settings.prompts.prompts[index]), settings.params, settings.seed + index
                )
                on_answer(f"{condition}: {lane.candidate}")
            words = words or answers(lanes[0])
            for lane in lanes:
                yield row(condition, lane, lanes[0].runs, words, settings.prompts.tasks)


def answers(lane: Lane) -> Words:
    """What a lane has written."""
    return [run.output.token_ids for run in lane.runs]


def row(condition: Condition, lane: Lane, streaming: Sequence[Run], words: Words, tasks: Sequence[str]) -> Row:
    """A lane's figures under a condition: the keys of `netlab simulate --json` where they mean the same.

    words: what must have been written; the same under every condition. tasks: the kind of work of each prompt.
    """
    metrics = [run.output.metrics for run in lane.runs]
    tokens = sum(len(run.output.token_ids) for run in lane.runs)
    verified = sum(m.verified_tokens for m in metrics)
    accepted = sum(m.accepted_tokens for m in metrics)
    ratios = [
        ours.output.metrics.total_ms / theirs.output.metrics.total_ms
        for ours, theirs in zip(lane.runs, streaming, strict=True)
    ]
    return {
        "rtt_ms": condition.rtt_ms,
        "profile": condition.profile,
        "policy": lane.name,
        "candidate": lane.candidate if lane.name == lane.policy else lane.name,
        "ms_per_token_p50": round(float(np.median([m.ms_per_token for m in metrics])), 3),
        "ms_per_token_by_task": by_task(lane.runs, tasks),
        "ttft_ms_p50": round(float(np.median([m.ttft_ms for m in metrics])), 3),
        "total_over_streaming_p50": round(float(np.median(ratios)), 4),
        "total_over_streaming_p95": round(float(np.percentile(ratios, 95)), 4),
        "total_over_streaming_max": round(max(ratios), 4),
        "target_forwards_per_token": round(sum(m.target_forwards for m in metrics) / tokens, 4),
        "target_positions_per_token": round((verified + sum(m.target_forwards for m in metrics)) / tokens, 4),
        "acceptance": round(accepted / verified, 4) if verified else None,
        "saved_per_token": round(sum(run.saved_tokens for run in lane.runs) / tokens, 4),
        "uplink_bytes_per_token": round(sum(run.bytes_up for run in lane.runs) / tokens, 2),
        "downlink_bytes_per_token": round(sum(run.bytes_down for run in lane.runs) / tokens, 2),
        "same_words": answers(lane) == words,
    }
