"""The speed-up that a drafter gives here, measured: the same answers streamed and drafted, in turns.

A forecast tells what riding can give: `speculation.pace.plan` reckons that a step takes the same time for one position
as for a block of them, that drafter and verifier share no CPU, that nothing is handed from thread to thread, and that
answers do not end. Where the round trip is long, waiting for it is most of a cycle and none of that shows. Without one
it is much of the time: with both demo programs on two CPUs, forecasts were up to twice too good. So a forecast is held
against a race of one drafter, and the share of the gain that was real there is what the others are promised.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from edge_client.client import EdgeClient
from edge_client.drafters.settings import DeviceSettings
from edge_client.setup.connection import Way
from edge_client.setup.reference_answers import ANSWER_TOKENS, TEMPERATURE, Reference
from edge_client.types import RequestOutput
from speculation.sampling import SamplingParams


@dataclass(frozen=True)
class Race:
    """Answers of one drafter and the same ones streamed, in the order of the reference's."""

    drafter: str
    streamed: tuple[RequestOutput, ...]
    drafted: tuple[RequestOutput, ...]

    @property
    def streamed_ms(self) -> float:
        """Per token after the first, of all answers together."""
        return ms_per_token(self.streamed)

    @property
    def drafted_ms(self) -> float:
        """As `streamed_ms`."""
        return ms_per_token(self.drafted)

    @property
    def speed_up(self) -> float:
        """How many times as fast as streaming, of all answers together."""
        return self.streamed_ms / self.drafted_ms

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles of the answers' own speed-ups."""
        own = [
            streamed.metrics.ms_per_token / drafted.metrics.ms_per_token
            for streamed, drafted in zip(self.streamed, self.drafted, strict=True)
            if min(streamed.metrics.ms_per_token, drafted.metrics.ms_per_token) > 0
        ]
        low, _, high = statistics.quantiles(own, n=4, method="inclusive") if len(own) > 1 else [self.speed_up] * 3
        return low, high

    def share(self, expected_ms: float, step_ms: float) -> float:
        """Of the forecast's gain, from 0 to 1. expected_ms, step_ms: forecast with this drafter, and without."""
        if expected_ms >= step_ms:
            return 1.0
        gain, forecast = 1 - self.drafted_ms / self.streamed_ms, 1 - expected_ms / step_ms
        return min(1.0, max(0.0, gain / forecast))


def ms_per_token(answers: tuple[RequestOutput, ...]) -> float:
    """Of all answers together, after their first tokens."""
    tokens = sum(len(answer.token_ids) - 1 for answer in answers)
    took_ms = sum(answer.metrics.ms_per_token * (len(answer.token_ids) - 1) for answer in answers)
    return took_ms / max(1, tokens)


def race(way: Way, drafter: str, threads: int, device: DeviceSettings, reference: Reference) -> Race | None:
    """Ask what the reference was asked, as an app would; None if the answers are too short to be timed.

    Raises SessionError and ValueError as `EdgeClient`.
    """
    params = SamplingParams(temperature=TEMPERATURE, max_tokens=ANSWER_TOKENS)
    streamed: list[RequestOutput] = []
    drafted: list[RequestOutput] = []
    with (
        EdgeClient(way.verifier, model=way.model, pace="streaming", security=way.security) as streaming,
        EdgeClient(
            way.verifier, drafter, model=way.model, threads=threads, device=device, security=way.security
        ) as drafting,
    ):
        turns = [(streaming, streamed), (drafting, drafted)]
        for answer in reference.answers:
            for client, kept in turns:
                kept.append(client.generate(list(answer.prompt), params, seed=answer.seed))
            turns.reverse()
    raced = Race(drafter, tuple(streamed), tuple(drafted))
    return raced if min(raced.streamed_ms, raced.drafted_ms) > 0 else None
