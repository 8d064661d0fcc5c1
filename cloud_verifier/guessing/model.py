"""Own guesses by a small model beside the target: speculation as servers have it that know nothing of devices.

The model is an engine like the target's, with sequences of its own. Before a step it reads what the logs have grown by
and draws guesses for all sessions at once, token by token, as long as another forward of it is worth its time. It
chooses by the session's own parameters and noise: so its guess is right where the target would choose the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

from cloud_verifier.engines.base import Block, EngineFull, Sampler, SequenceId, TargetEngine
from cloud_verifier.guessing.base import BatchedSource, Guesser, Job, OwnGuess, Worth
from cloud_verifier.log_redaction import log_failure
from speculation.draft_tree import UNSAID_CONFIDENCE
from speculation.pace.estimators import Window

log = logging.getLogger(__name__)

READ_TOKENS = 256  # of prompts, before one step, all sessions together
FEW_TOKENS = 8  # a block of so many takes hardly longer than one
UNASKED = -1
FORWARDS = 16  # whose median is the time of one: a late one says nothing of the next
TRY_EVERY = 64  # draws that are not worth it: a model that was slow may not be so any more

Path = tuple[int, ...]  # tokens after the log


class ModelGuesser(Guesser):
    """One session's sequence of the model.

    held: its tokens, of which the first `agreed` are known to be the log's. said: after each of them what the model
    would go on with, UNASKED where it was not asked. ready: the length of the log when guesses were drawn, and what the
    model says after the log and each of the paths from there.
    """

    def __init__(self, source: DraftModel, sampler: Sampler) -> None:
        self.source, self.sampler = source, sampler
        self.sequence: SequenceId | None = None
        self.held: list[int] = []
        self.said: list[int] = []
        self.agreed = 0
        self.ready: tuple[int, dict[Path, int]] = (0, {})

    @property
    def batch(self) -> BatchedSource:
        return self.source

    def after(self, log: Sequence[int], path: Sequence[int]) -> Generator[OwnGuess, None, None]:
        length, choices = self.ready
        at = tuple(path)
        while length == len(log) and (token := choices.get(at)) is not None:
            yield OwnGuess(token, UNSAID_CONFIDENCE)
            at += (token,)

    def close(self) -> None:
        if (sequence := self.sequence) is not None:
            self.sequence = None
            self.source.engine.close(sequence)


@dataclass
class _Tip:
    """Where a session's guesses may go on. path: from the log. own: how many of it, at its end, are the model's own.
    survival: probability that all of it is right."""

    survival: float
    path: Path
    own: int


@dataclass
class _Drawing:
    """A session whose guesses are being drawn."""

    job: Job
    guesser: ModelGuesser
    sequence: SequenceId
    choices: dict[Path, int]
    tips: list[_Tip] = field(default_factory=list)
    drawn: int = 0

    def next(self) -> _Tip | None:
        """The likeliest."""
        if self.drawn >= self.job.most or not self.tips:
            return None
        return max(self.tips, key=lambda tip: tip.survival)

    def begin(self) -> None:
        """The model has read the path: find where it says something else, or goes on."""
        job, said = self.job, self.guesser.said
        for length, start in enumerate(job.starts):
            index, path = len(job.log) - 1 + length, tuple(job.path[:length])
            if index >= len(said) or (token := said[index]) == UNASKED:
                return
            self.choices[path] = token
            if length == len(job.path) or token != job.path[length]:
                own = token not in start.said
                self.tips.append(_Tip(start.said.get(token, start.survival), (*path, token), int(own)))

    def go_on(self, tip: _Tip, token: int) -> None:
        """The model says this after the tip."""
        self.choices[tip.path] = token
        self.tips.remove(tip)
        self.tips.append(_Tip(tip.survival * self.job.probability(tip.own), (*tip.path, token), tip.own + 1))
        self.drawn += 1


class DraftModel(BatchedSource):
    """Where `ModelGuesser`s come from. engine: of the target's vocabulary."""

    def __init__(self, engine: TargetEngine, clock: Callable[[], float] = time.perf_counter) -> None:
        self.engine, self._clock = engine, clock
        self._forward = Window(FORWARDS, 0.0)
        self._refused = self._scopes = 0

    def __call__(self, sampler: Sampler) -> ModelGuesser:
        """For a new session."""
        return ModelGuesser(self, sampler)

    def draw(self, jobs: Sequence[Job], worth: Worth) -> None:
        """First it reads the devices' paths, and says at each place what it would go on with. Then each session's
        likeliest tip is drawn out by one token, and again."""
        hopes = sum(start.survival for job in jobs for start in job.starts)
        if not worth(hopes, len(jobs), self._forward.median_ms / 1e3):
            self._refused += 1
            if self._refused % TRY_EVERY:
                return
        left = READ_TOKENS
        drawing: list[_Drawing] = []
        reading: list[tuple[_Drawing, Block]] = []
        for job in jobs:
            if len(job.log) + len(job.path) + job.most > self.engine.info.context_limit:
                continue
            guesser = job.guesser
            assert isinstance(guesser, ModelGuesser)
            try:
                one = _Drawing(job, guesser, self._sequence(guesser, job.log), {})
                block = self._block(one, tuple(job.path), left, len(job.starts))
            except EngineFull:  # it goes on without
                continue
            drawing.append(one)
            if block is not None:
                left -= len(block.tokens)
                reading.append((one, block))
        self._step(reading)
        for one in drawing:
            one.begin()
            one.guesser.ready = len(one.job.log), one.choices
        while tips := [(one, tip) for one in drawing if (tip := one.next()) is not None]:
            hopes = sum(tip.survival * one.job.probability(tip.own) for one, tip in tips)
            if not worth(hopes, len(tips), self._forward.median_ms / 1e3):
                return
            blocks: list[tuple[_Drawing, Block]] = []
            for one, tip in tips:
                try:
                    block = self._block(one, tip.path, READ_TOKENS, 1)
                except EngineFull:
                    one.tips.clear()
                    continue
                assert block is not None  # its last token was never read
                blocks.append((one, block))
            self._step(blocks)
            for one, tip in tips:
                if one.tips:
                    one.go_on(tip, one.guesser.said[-1])

    def _step(self, work: Sequence[tuple[_Drawing, Block]]) -> None:
        """One forward."""
        if not work:
            return
        blocks = [block for _, block in work]
        began_s = self._clock()
        results = self.engine.step(blocks)
        took_s = self._clock() - began_s
        if max(len(block.tokens) for block in blocks) <= FEW_TOKENS:  # not those that read
            self._forward.add(took_s * 1e3)
        for (one, block), choices in zip(work, results, strict=True):
            one.guesser.held += block.tokens
            one.guesser.said += [UNASKED] * (len(block.tokens) - block.choices) + [*choices.tokens]

    def _sequence(self, guesser: ModelGuesser, text: Sequence[int]) -> SequenceId:
        if guesser.sequence is None:
            self._scopes += 1  # nobody's prompt is looked up for another
            guesser.sequence = self.engine.open(text, f"draft {self._scopes}")
        return guesser.sequence

    def _block(self, one: _Drawing, path: Path, most: int, asked: int) -> Block | None:
        """What makes the sequence hold log and path, as far as `most` tokens go, with the model's choices at the last
        `asked` places; None if they are known, or nothing may be read. Raises EngineFull."""
        guesser, text, held = one.guesser, one.job.log, one.guesser.held
        kept = guesser.agreed
        while kept < min(len(held), len(text)) and held[kept] == text[kept]:
            kept += 1
        guesser.agreed = kept
        wanted = [*text[kept:], *path]
        if kept == len(text):
            while kept < min(len(held), len(text) + len(path)) and held[kept] == path[kept - len(text)]:
                kept += 1
            wanted = list(path[kept - len(text) :])
        end = len(text) + len(path)
        first = end - asked
        unknown = next((at for at in range(first, kept) if guesser.said[at] == UNASKED), kept)
        wanted = [*held[unknown:kept], *wanted][: max(0, most)]
        if unknown < len(held):
            self.engine.truncate(one.sequence, unknown)
            del held[unknown:], guesser.said[unknown:]
            guesser.agreed = min(guesser.agreed, unknown)
        if not wanted:
            return None
        self.engine.reserve(one.sequence, len(wanted))
        choices = max(0, min(len(wanted), unknown + len(wanted) - first))
        return Block(one.sequence, wanted, choices, guesser.sampler)

    def failed(self, error: Exception) -> None:
        log_failure(log, "the draft model failed; its sessions go on without it", error)
