"""Ways of decoding, run over the same link against the same server, and what each of them cost."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from edge_client.client import EdgeClient
from edge_client.types import Prompt, RequestOutput, StreamChunk
from netlab.link_process import LinkProcess
from speculation.adaptive import Adaptive
from speculation.pace import Pace, Streaming, Synchronous
from speculation.sampling import SamplingParams

OnChunk = Callable[[StreamChunk], None]
SWEEP = (2, 4, 6, 8, 12, 16)
WARM_UP = "Hello, can you help me find something to do in San Francisco?"


def chat(text: str) -> list[dict[str, str]]:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


@dataclass(frozen=True)
class Run:
    """One answer and the bytes that the link carried for it, framing and all."""

    output: RequestOutput
    bytes_up: int
    bytes_down: int


@dataclass
class Lane:
    """One way of decoding: a client with its pace, and its runs so far."""

    name: str
    title: str
    client: EdgeClient
    runs: list[Run] = field(default_factory=list)

    def answer(self, prompt: Prompt, params: SamplingParams, seed: int, on_chunk: OnChunk) -> RequestOutput:
        """Run one prompt to its end. Raises SessionError."""
        output = None
        for chunk in self.client.stream(prompt, params, seed=seed):
            on_chunk(chunk)
            output = chunk.output
        assert output is not None
        return output

    def measure(self, link: LinkProcess, prompt: Prompt, params: SamplingParams, seed: int, on_chunk: OnChunk) -> None:
        """Run one prompt alone on the link and keep what it cost. Raises SessionError."""
        before = link.counters()
        output = self.answer(prompt, params, seed, on_chunk)
        carried = link.counters().since(before)
        self.runs.append(Run(output, carried.bytes_up, carried.bytes_down))


@dataclass(frozen=True)
class Figures:
    """What a lane cost. Medians over its prompts, except the token counts, which are totals.

    acceptance: share of evaluated drafted tokens that the log took.
    """

    ttft_ms: float
    ms_per_token: float
    total_ms: float
    target_forwards_per_token: float
    acceptance: float | None
    drafted_tokens: int
    accepted_tokens: int
    uplink_bytes_per_token: float
    downlink_bytes_per_token: float
    uplink_bytes_per_accepted_token: float | None
    token_ids: list[list[int]]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Figures:
        """From at least one run."""

        def median(value: Callable[[Run], float]) -> float:
            return statistics.median(value(run) for run in runs)

        accepted = sum(run.output.metrics.accepted_tokens for run in runs)
        acceptances = [a for run in runs if (a := run.output.metrics.acceptance) is not None]
        return cls(
            ttft_ms=median(lambda run: run.output.metrics.ttft_ms),
            ms_per_token=median(lambda run: run.output.metrics.ms_per_token),
            total_ms=median(lambda run: run.output.metrics.total_ms),
            target_forwards_per_token=median(
                lambda run: run.output.metrics.target_forwards / len(run.output.token_ids)
            ),
            acceptance=statistics.median(acceptances) if acceptances else None,
            drafted_tokens=sum(run.output.metrics.drafted_tokens for run in runs),
            accepted_tokens=accepted,
            uplink_bytes_per_token=median(lambda run: run.bytes_up / len(run.output.token_ids)),
            downlink_bytes_per_token=median(lambda run: run.bytes_down / len(run.output.token_ids)),
            uplink_bytes_per_accepted_token=sum(run.bytes_up for run in runs) / accepted if accepted else None,
            token_ids=[list(run.output.token_ids) for run in runs],
        )

    def as_json(self) -> dict[str, Any]:
        """Rounded for reading; times to a microsecond."""
        return {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(self).items()}


class BestSync:
    """The synchronous lane's pace: textbook rounds whose length is the best of a small sweep."""

    def __init__(self) -> None:
        self.draft_tokens = SWEEP[0]

    def pace(self) -> Pace:
        """A pace with the present draft length."""
        return Synchronous(self.draft_tokens)

    def sweep(self, lane: Lane, params: SamplingParams, seed: int) -> None:
        """Try every length on a prompt of its own and keep the one with the least time per token."""

        def ms_per_token(draft_tokens: int) -> float:
            self.draft_tokens = draft_tokens
            return lane.client.generate(chat(WARM_UP), params, seed=seed).metrics.ms_per_token

        self.draft_tokens = min(SWEEP, key=ms_per_token)
        lane.title = f"sync, k={self.draft_tokens}"


@contextlib.contextmanager
def open_lanes(address: str, drafter: str) -> Iterator[tuple[list[Lane], BestSync]]:
    """Streaming, synchronous rounds and Outrider, each with a client and (but for streaming) a drafter of its own."""
    sync = BestSync()
    with contextlib.ExitStack() as stack:

        def lane(name: str, title: str, spec: str | None, pace: Callable[[], Pace]) -> Lane:
            return Lane(name, title, stack.enter_context(EdgeClient(address, spec, pace=pace)))

        lanes = [
            lane("streaming", "streaming", None, Streaming),
            lane("sync", "sync", drafter, sync.pace),
            lane("outrider", "Outrider", drafter, Adaptive),
        ]
        for each in lanes:
            each.client.generate(chat(WARM_UP), SamplingParams(max_tokens=8, ignore_eos=True), seed=0)
        yield lanes, sync


def interleaved(lanes: Sequence[Lane], prompts: Sequence[str]) -> Iterator[tuple[Lane, int]]:
    """Every lane on every prompt, in another order each time, so that no lane has the machine's better moments."""
    for index in range(len(prompts)):
        turn = index % len(lanes)
        yield from ((lane, index) for lane in (*lanes[turn:], *lanes[:turn]))


def same_words(lanes: Sequence[Lane]) -> bool:
    """Whether every lane wrote the same token ids for every prompt."""
    answers = [[run.output.token_ids for run in lane.runs] for lane in lanes]
    return all(answer == answers[0] for answer in answers)
