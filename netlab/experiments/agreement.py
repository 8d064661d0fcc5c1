"""Does the simulator say what the real programs do? The same prompts and seeds in both, cell by cell.

The simulator gets a recording of the very same answers and six figures measured on the real programs: how long a guess
takes, what the riding loop adds to it, what one more end of a tree adds, how long the drafter reads a token more, how
long a step of the verifier takes, and what the programs add to the link's round trip. All of them are taken over the
whole run, none from the cell that is predicted.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_client.drafters.base import Drafter, DrafterError
from netlab.experiments import drafters
from netlab.experiments.conditions import Condition, of_rtts
from netlab.experiments.rig import Rig, folder_of
from netlab.link_settings import LinkSettings
from netlab.prompts import OPENINGS
from netlab.race import Run, chat, interleaved
from netlab.simulator.device import DeviceSettings
from netlab.simulator.link import Link
from netlab.simulator.pair import MARGIN_TOKENS, Answer
from netlab.simulator.record import RecordSettings, record_answer
from netlab.simulator.run import Result, Rider, simulate
from netlab.simulator.verifier import StepTime, VerifierSettings
from speculation.pace import policies
from speculation.pace.base import Pace
from speculation.pace.observed import Committed, Diary, Drafted, Event, Observed
from speculation.sampling import SamplingParams

POLICIES = ("streaming", "sync:8", "server-led", "adaptive:1", "adaptive")
READ_TOKENS, READ_TIMES = 4, 9


@dataclass(frozen=True)
class AgreementSettings:
    """What is run twice. drafts_ms: least times of a guess. seed: of the first prompt; each has its own."""

    rtts_ms: Sequence[float] = (0.0, 20.0, 50.0, 100.0, 200.0)
    drafts_ms: Sequence[float] = (2.0, 8.0)
    policies: Sequence[str] = POLICIES
    prompts: int = 4
    tokens: int = 96
    temperature: float = 0.8
    seed: int = 7
    drafter: str = "demo"
    target: str = "demo"

    @property
    def params(self) -> SamplingParams:
        """Of every answer."""
        return SamplingParams(temperature=self.temperature, max_tokens=self.tokens, ignore_eos=True)

    def __post_init__(self) -> None:
        """Refuse before anything runs. Raises ValueError."""
        if "streaming" not in self.policies or len(self.policies) < 2:
            raise ValueError("the step's time is measured on streaming, the others' on a drafter: name both kinds")
        for name in self.policies:
            policies.find(name)
        if min(self.drafts_ms) <= 0:
            raise ValueError("a draft time must be above 0 here, or nobody knows what was simulated")
        of_rtts(self.rtts_ms)

    def answers(self) -> int:
        """How many real ones, for a progress bar."""
        return len(self.rtts_ms) * len(self.drafts_ms) * len(self.policies) * self.prompts


@dataclass(frozen=True)
class Recorded:
    """One answer for the simulator, its prompt's length, how long the drafter reads 1, 2, ... tokens at once, and how
    many ends of a tree it looks at in one evaluation."""

    answer: Answer
    prompt_tokens: int
    reading_ms: Sequence[float] = (0.0,)
    most_tips: int = 1

    def feed_ms(self, draft_ms: float) -> float:
        """A token more, for a drafter that takes at least draft_ms however many it reads."""
        first, last = (max(draft_ms, self.reading_ms[place]) for place in (0, -1))
        return (last - first) / max(1, len(self.reading_ms) - 1)


def record(settings: AgreementSettings) -> list[Recorded]:
    """What drafter and target do at every position of the very answers that will be raced, margin included.

    Raises DrafterError, ModelError, TextError.
    """
    from cloud_verifier.engines.torch_engine.load import load  # late: torch takes seconds
    from cloud_verifier.serving.codec import Codec

    folder = str(folder_of(Path(settings.target)))
    codec = Codec(folder)
    engine = load(folder, strict=True, max_sequences=1, threads=1)
    drafter = drafters.load(settings.drafter, 0.0, engine.info.vocabulary_size, codec.fingerprint)
    if drafter is None:
        raise DrafterError("without a drafter there is nothing to agree on")
    wanted = RecordSettings(tokens=settings.tokens + MARGIN_TOKENS, temperature=settings.temperature)
    recorded = []
    for index, text in enumerate(OPENINGS[: settings.prompts]):
        prompt = codec.encode_chat(chat(text))
        answer = record_answer(engine, drafter, prompt, wanted, settings.seed + index)
        tree = Answer(settings.tokens, answer.hits, answer.confidences, answer.ranks, answer.others)
        recorded.append(Recorded(tree, len(prompt), _reading_ms(drafter, prompt), drafter.most_tips))
    drafter.close()
    return recorded


def _reading_ms(drafter: Drafter, prompt: Sequence[int]) -> list[float]:
    """What it takes the drafter to read 1 token, 2, ... READ_TOKENS at once after a prompt, the median of some."""
    drafter.rollback(0)
    drafter.feed(prompt)
    return [
        statistics.median(_feeding_ms(drafter, prompt[:count]) for _ in range(READ_TIMES))
        for count in range(1, READ_TOKENS + 1)
    ]


def _feeding_ms(drafter: Drafter, tokens: Sequence[int]) -> float:
    length = drafter.length
    began_s = time.perf_counter()
    drafter.feed(tokens)
    taken_ms = (time.perf_counter() - began_s) * 1e3
    drafter.rollback(length)
    return taken_ms


@dataclass(frozen=True)
class Measured:
    """One policy under one condition on the real programs; diaries belong to the runs."""

    condition: Condition
    draft_ms: float
    policy: str
    runs: list[Run]
    diaries: list[Diary]


def measure(rig: Rig, settings: AgreementSettings, on_answer: Callable[[], object]) -> Iterator[Measured]:
    """Every cell on the real programs, interleaved. Raises DrafterError, SessionError, LinkProcessError."""
    diaries: dict[str, list[Diary]] = {name: [] for name in settings.policies}

    def watch(lane: str, pace: Pace) -> Pace:
        diaries[lane].append(Diary())
        return Observed(pace, diaries[lane][-1])

    wanted = {name: name for name in settings.policies}
    for draft_ms in settings.drafts_ms:
        with rig.lanes(wanted, settings.drafter, draft_ms, watch) as lanes:
            for condition in of_rtts(settings.rtts_ms):
                rig.link.configure(condition.settings)
                for lane in lanes:
                    lane.runs.clear()
                    diaries[lane.name].clear()
                for lane, index in interleaved(lanes, OPENINGS[: settings.prompts]):
                    lane.measure(rig.link, chat(OPENINGS[index]), settings.params, settings.seed + index)
                    on_answer()
                for lane in lanes:
                    yield Measured(condition, draft_ms, lane.name, list(lane.runs), list(diaries[lane.name]))


@dataclass(frozen=True)
class Figures:
    """What is measured on the real programs and handed to the simulator.

    step_ms: from commit to commit of a streaming verifier, so its step and what lies between two of them. turn_ms: what
    programs and operating system add to the link's round trip. guess_ms: from guess to guess, riding loop included, and
    tip_ms: what each more end of a tree adds to one; by the drafter's least time.
    """

    step_ms: float
    turn_ms: float
    guess_ms: dict[float, float]
    tip_ms: dict[float, float]

    @classmethod
    def of(cls, cells: Sequence[Measured]) -> Figures:
        """Medians over all cells."""
        guess_ms = {
            draft_ms: statistics.median(ms for ms, tips in _evaluations(cells, draft_ms) if tips == 1)
            for draft_ms in {cell.draft_ms for cell in cells}
        }
        return cls(
            step_ms=statistics.median(
                later.at_ms - earlier.at_ms
                for cell in cells
                for earlier, later in _neighbours(cell)
                if cell.policy == "streaming"
            ),
            turn_ms=statistics.median(
                event.rtt_ms - cell.condition.rtt_ms
                for cell in cells
                for diary in cell.diaries
                for event in diary.events
                if isinstance(event, Committed) and event.rtt_ms is not None
            ),
            guess_ms=guess_ms,
            tip_ms={
                draft_ms: statistics.median(
                    [(ms - alone_ms) / (tips - 1) for ms, tips in _evaluations(cells, draft_ms) if tips > 1] or [0.0]
                )
                for draft_ms, alone_ms in guess_ms.items()
            },
        )

    def as_json(self) -> dict[str, Any]:
        """Rounded for reading."""
        guesses = {f"{draft_ms:g}": round(ms, 3) for draft_ms, ms in sorted(self.guess_ms.items())}
        tips = {f"{draft_ms:g}": round(ms, 3) for draft_ms, ms in sorted(self.tip_ms.items())}
        step_ms, turn_ms = round(self.step_ms, 3), round(self.turn_ms, 3)
        return {"step_ms": step_ms, "turn_ms": turn_ms, "guess_ms": guesses, "tip_ms": tips}


def _evaluations(cells: Sequence[Measured], draft_ms: float) -> Iterator[tuple[float, int]]:
    """From one to the next without a pause: how long it took, and at how many ends guesses were drawn."""
    for cell in cells:
        if cell.draft_ms == draft_ms:
            for earlier, later in _neighbours(cell):
                # Those of one evaluation have one time.
                if isinstance(earlier, Drafted) and isinstance(later, Drafted) and later.at_ms > earlier.at_ms:
                    yield later.at_ms - earlier.at_ms, later.tips


def _neighbours(cell: Measured) -> Iterator[tuple[Event, Event]]:
    return (pair for diary in cell.diaries for pair in itertools.pairwise(diary.events))


@dataclass(frozen=True)
class Compared:
    """A cell in both worlds; medians over its prompts. difference: of ms per token, simulated over real, less one,
    prompt by prompt, so that an answer that the machine disturbed does not speak for all."""

    rtt_ms: float
    draft_ms: float
    policy: str
    real_ms_per_token: float
    simulated_ms_per_token: float
    difference: float
    real_forwards_per_token: float
    simulated_forwards_per_token: float

    def as_json(self) -> dict[str, Any]:
        """Rounded for reading."""
        return {name: round(v, 4) if isinstance(v, float) else v for name, v in asdict(self).items()}


def compare(cells: Sequence[Measured], recorded: Sequence[Recorded], figures: Figures) -> list[Compared]:
    """Simulate measured cells, in the order in which they were measured. Raises PaceError.

    A client keeps what it has measured from one answer to the next, so a simulated one does.
    """
    clients = {(cell.draft_ms, cell.policy): policies.find(cell.policy) for cell in cells}
    return [_compare(cell, recorded, figures, clients[cell.draft_ms, cell.policy]) for cell in cells]


def _compare(cell: Measured, recorded: Sequence[Recorded], figures: Figures, pace: Callable[[], Pace]) -> Compared:
    results = [_simulate(cell, each, figures, pace()) for each in recorded]
    real = [run.output for run in cell.runs]
    return Compared(
        rtt_ms=cell.condition.rtt_ms,
        draft_ms=cell.draft_ms,
        policy=cell.policy,
        real_ms_per_token=statistics.median(output.metrics.ms_per_token for output in real),
        simulated_ms_per_token=statistics.median(result.ms_per_token for result in results),
        difference=statistics.median(
            result.ms_per_token / output.metrics.ms_per_token - 1 for result, output in zip(results, real, strict=True)
        ),
        real_forwards_per_token=statistics.median(o.metrics.target_forwards / len(o.token_ids) for o in real),
        simulated_forwards_per_token=statistics.median(r.target_forwards / r.tokens for r in results),
    )


def _simulate(cell: Measured, recorded: Recorded, figures: Figures, pace: Pace) -> Result:
    rider = Rider(
        recorded.answer,
        Link.of_settings(LinkSettings.of_rtt(cell.condition.rtt_ms + figures.turn_ms)),
        pace,
        DeviceSettings(
            figures.guess_ms[cell.draft_ms],
            recorded.feed_ms(cell.draft_ms),
            most_tips=recorded.most_tips,
            tip_ms=max(0.0, figures.tip_ms[cell.draft_ms]),
        ),
        recorded.prompt_tokens,
    )
    return simulate([rider], VerifierSettings(StepTime(figures.step_ms))).results[0]


def summary(rows: Sequence[Compared]) -> tuple[float, float]:
    """How far apart the worlds are, whichever is the slower: median and worst."""
    apart = [abs(row.difference) for row in rows]
    return statistics.median(apart), max(apart)
