"""Ways of decoding, run over the same link against the same server, and what each of them cost."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from operator import and_
from typing import Any

from edge_client.client import EdgeClient
from edge_client.drafters.base import Drafter
from edge_client.types import Prompt, RequestOutput, StreamChunk
from netlab.link_process import LinkProcess
from speculation.pace import policies
from speculation.pace.base import Pace, Synchronous
from speculation.sampling import SamplingParams

OnChunk = Callable[[StreamChunk], None]
MakePace = Callable[[], Pace]
Load = Callable[[], Drafter | str | None]  # a drafter, or what names one, for one client

Watch = Callable[[str, Pace], Pace]  # given a lane's name and the pace of a new session: the pace to ride with

CO_LOCATED = "co-located"  # in the laboratory: a client without a drafter, of a verifier with a draft model
SYNC = "sync"  # in the laboratory: textbook rounds with the best length of a sweep
SWEEP = (2, 4, 8, 12, 16, 24, 32)
WARM_UP = "Hello, can you help me find something to do in San Francisco?"
TUNING = (WARM_UP, "Could you book a cab to the airport for me, for three people?")


def chat(text: str) -> list[dict[str, str]]:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def ignore(_chunk: StreamChunk) -> None:
    """Look at no chunk."""


def unwatched(_lane: str, pace: Pace) -> Pace:
    """The pace as it is."""
    return pace


@dataclass(frozen=True)
class Run:
    """One answer and the bytes that the link carried for it, framing and all. saved_tokens: of the answer, those that
    were second guesses: a line would have ended there."""

    output: RequestOutput
    bytes_up: int
    bytes_down: int
    saved_tokens: int = 0


class BestSync:
    """The synchronous lane's pace: textbook rounds whose length is the best of a small sweep."""

    def __init__(self) -> None:
        self.draft_tokens = SWEEP[0]

    def pace(self) -> Pace:
        """A pace with the present draft length."""
        return Synchronous(self.draft_tokens)

    def sweep(self, client: EdgeClient, params: SamplingParams, seed: int) -> None:
        """Try every length on prompts of its own and keep the one with the least time per token. Raises SessionError.

        The prompts share the tokens of one answer, so that a length is not chosen for the quirks of one text.
        """
        short = replace(params, max_tokens=max(2, (params.max_tokens or SWEEP[-1]) // len(TUNING)))

        def ms_per_token(draft_tokens: int) -> float:
            self.draft_tokens = draft_tokens
            return sum(client.generate(chat(text), short, seed=seed).metrics.ms_per_token for text in TUNING)

        self.draft_tokens = min(SWEEP, key=ms_per_token)


@dataclass
class Lane:
    """One way of decoding: a client with its policy, and its runs so far.

    best_sync: the rounds of a lane whose length is swept; None for every other lane.
    """

    name: str
    policy: str
    client: EdgeClient
    best_sync: BestSync | None = None
    runs: list[Run] = field(default_factory=list)

    @property
    def candidate(self) -> str:
        """The policy as it is run now: of rounds, how long they are."""
        return self.policy if self.best_sync is None else f"{SYNC}:{self.best_sync.draft_tokens}"

    @property
    def title(self) -> str:
        """For people."""
        return self.name if self.best_sync is None else f"{self.name}, k={self.best_sync.draft_tokens}"

    def tune(self, params: SamplingParams, seed: int) -> None:
        """Choose the length of rounds; nothing for every other lane. Raises SessionError."""
        if self.best_sync is not None:
            self.best_sync.sweep(self.client, params, seed)

    def answer(self, prompt: Prompt, params: SamplingParams, seed: int, on_chunk: OnChunk = ignore) -> RequestOutput:
        """Run one prompt to its end. Raises SessionError."""
        output = None
        for chunk in self.client.stream(prompt, params, seed=seed):
            on_chunk(chunk)
            output = chunk.output
        assert output is not None
        return output

    def measure(
        self, link: LinkProcess, prompt: Prompt, params: SamplingParams, seed: int, on_chunk: OnChunk = ignore
    ) -> None:
        """Run one prompt alone on the link and keep what it cost. Raises SessionError."""
        before, saved = link.counters(), 0

        def counted(chunk: StreamChunk) -> None:
            nonlocal saved
            saved += sum(map(and_, chunk.drafted, chunk.corrected))
            on_chunk(chunk)

        output = self.answer(prompt, params, seed, counted)
        carried = link.counters().since(before)
        self.runs.append(Run(output, carried.bytes_up, carried.bytes_down, saved))


@dataclass(frozen=True)
class Figures:
    """What a lane cost. Medians over its prompts, except the token counts, which are totals.

    acceptance: acceptance rate, accepted / checked drafted tokens. saved_per_token: share of the answer that was second
    guesses.
    """

    ttft_ms: float
    ms_per_token: float
    total_ms: float
    target_forwards_per_token: float
    acceptance: float | None
    saved_per_token: float
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
            saved_per_token=median(lambda run: run.saved_tokens / len(run.output.token_ids)),
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


def by_task(runs: Sequence[Run], tasks: Sequence[str]) -> dict[str, float]:
    """Median time per token of each kind of work, ms. tasks: of each run."""
    return {
        task: round(
            statistics.median(
                run.output.metrics.ms_per_token for run, its in zip(runs, tasks, strict=True) if its == task
            ),
            3,
        )
        for task in dict.fromkeys(tasks)
    }


@contextlib.contextmanager
def open_lanes(
    address: str, load: Load, wanted: Mapping[str, str], watch: Watch = unwatched, co_located: str = ""
) -> Iterator[list[Lane]]:
    """A warm lane per entry of `wanted`, name to policy, each with a client and, unless it streams, its own drafter.

    Without a drafter every lane streams. co_located: address of a verifier that guesses by itself, for CO_LOCATED.

    Raises PolicyError for a policy that does not exist, DrafterError if `load` does, SessionError.
    """
    with contextlib.ExitStack() as stack:
        lanes = []
        for name, policy in wanted.items():
            drafter = None if policy in ("streaming", CO_LOCATED) else load()
            best_sync = BestSync() if policy == SYNC and drafter is not None else None
            make = best_sync.pace if best_sync else policies.find(policy if drafter is not None else "streaming")
            where = co_located if policy == CO_LOCATED else address
            client = stack.enter_context(EdgeClient(where, drafter, pace=_watched(make, name, watch)))
            lanes.append(Lane(name, policy, client, best_sync))
        for lane in lanes:
            lane.client.generate(chat(WARM_UP), SamplingParams(max_tokens=8, ignore_eos=True), seed=0)
        yield lanes


def _watched(make: MakePace, name: str, watch: Watch) -> MakePace:
    return lambda: watch(name, make())


def interleaved(lanes: Sequence[Lane], prompts: Sequence[str]) -> Iterator[tuple[Lane, int]]:
    """Every lane on every prompt, in another order each time, so that no lane has the machine's better moments."""
    for index in range(len(prompts)):
        turn = index % len(lanes)
        yield from ((lane, index) for lane in (*lanes[turn:], *lanes[:turn]))


def same_words(lanes: Sequence[Lane]) -> bool:
    """Whether every lane wrote the same token ids for every prompt."""
    answers = [[run.output.token_ids for run in lane.runs] for lane in lanes]
    return all(answer == answers[0] for answer in answers)
