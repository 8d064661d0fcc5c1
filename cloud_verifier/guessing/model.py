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

log = logging.getLogger(__name__)

READ_TOKENS = 256  # of prompts, before one step, all sessions together
SLOW = 0.1  # how fast the time of a forward is learned


class ModelGuesser(Guesser):
    """One session's sequence of the model. held: its tokens; agreed: how many of them, from the first on, are known to
    be the log's. ready: what was drawn: the length of the log then, the path after it and the guesses after that."""

    def __init__(self, source: DraftModel, sampler: Sampler) -> None:
        self.source, self.sampler = source, sampler
        self.sequence: SequenceId | None = None
        self.held: list[int] = []
        self.agreed = 0
        self.ready: tuple[int, list[int]] = (0, [])

    @property
    def batch(self) -> BatchedSource:
        return self.source

    def after(self, log: Sequence[int], path: Sequence[int]) -> Generator[OwnGuess, None, None]:
        length, tokens = self.ready
        if length == len(log) and tokens[: len(path)] == list(path):  # or else the device has said more meanwhile
            for token in tokens[len(path) :]:
                yield OwnGuess(token, UNSAID_CONFIDENCE)

    def close(self) -> None:
        if (sequence := self.sequence) is not None:
            self.sequence = None
            self.source.engine.close(sequence)


@dataclass
class _Drawing:
    """A session's guesses as they are drawn. survival: of the next one."""

    job: Job
    guesser: ModelGuesser
    sequence: SequenceId
    tokens: list[int]
    survival: float
    drawn: int = field(default=0)


class DraftModel(BatchedSource):
    """Where `ModelGuesser`s come from. engine: of the target's vocabulary."""

    def __init__(self, engine: TargetEngine, clock: Callable[[], float] = time.perf_counter) -> None:
        self.engine, self._clock = engine, clock
        self._forward_s = 0.0
        self._scopes = 0

    def __call__(self, sampler: Sampler) -> ModelGuesser:
        """For a new session."""
        return ModelGuesser(self, sampler)

    def draw(self, jobs: Sequence[Job], worth: Worth) -> None:
        left = READ_TOKENS
        drawing: list[_Drawing] = []
        blocks: list[Block] = []
        hopes = sum(job.survival * job.probability(0) for job in jobs)
        if not worth(hopes, len(jobs), self._forward_s):
            return
        for job in jobs:
            guesser = job.guesser
            assert isinstance(guesser, ModelGuesser)
            try:
                sequence = self._sequence(guesser, job.log)
                lacking = self._lacking(guesser, sequence, job)[: max(0, left)]
                if not lacking:
                    continue
                self.engine.reserve(sequence, len(lacking) + job.most)
            except EngineFull:  # it goes on without
                continue
            left -= len(lacking)
            guesser.held += lacking
            whole = len(guesser.held) == len(job.log) + len(job.path)
            blocks.append(Block(sequence, lacking, int(whole), guesser.sampler))
            drawing.append(_Drawing(job, guesser, sequence, [*job.path], job.survival))
        while blocks:
            drawing = self._step(drawing, blocks)
            drawing = [one for one in drawing if one.drawn < one.job.most]
            hopes = sum(one.survival for one in drawing)
            if not drawing or not worth(hopes, len(drawing), self._forward_s):
                return
            blocks = [Block(one.sequence, one.tokens[-1:], 1, one.guesser.sampler) for one in drawing]
            for one in drawing:
                one.guesser.held.append(one.tokens[-1])

    def _step(self, drawing: Sequence[_Drawing], blocks: Sequence[Block]) -> list[_Drawing]:
        """One forward; those that have another guess."""
        began_s = self._clock()
        results = self.engine.step(blocks)
        took_s = self._clock() - began_s
        if all(len(block.tokens) == 1 for block in blocks):  # not those that read
            self._forward_s += SLOW * (took_s - self._forward_s) if self._forward_s else took_s
        going_on = []
        for one, choices in zip(drawing, results, strict=True):
            if not choices.tokens:
                continue
            one.tokens.append(choices.tokens[0])
            one.guesser.ready = len(one.job.log), one.tokens
            one.survival *= one.job.probability(one.drawn)
            one.drawn += 1
            going_on.append(one)
        return going_on

    def _sequence(self, guesser: ModelGuesser, text: Sequence[int]) -> SequenceId:
        if guesser.sequence is None:
            self._scopes += 1  # nobody's prompt is looked up for another
            guesser.sequence = self.engine.open(text, f"draft {self._scopes}")
        return guesser.sequence

    def _lacking(self, guesser: ModelGuesser, sequence: SequenceId, job: Job) -> list[int]:
        """What the sequence lacks of log and path, at least the last token; nothing if that is too long for it."""
        text, path, held = job.log, job.path, guesser.held
        if len(text) + len(path) + job.most > self.engine.info.context_limit:
            return []
        kept = guesser.agreed
        while kept < min(len(held), len(text)) and held[kept] == text[kept]:
            kept += 1
        guesser.agreed = kept
        if kept == len(text):
            while kept < min(len(held), len(text) + len(path)) and held[kept] == path[kept - len(text)]:
                kept += 1
        kept = min(kept, len(text) + len(path) - 1)
        if kept < len(held):
            self.engine.truncate(sequence, kept)
            del held[kept:]
        return [*text[kept:], *path[max(0, kept - len(text)) :]]

    def failed(self, error: Exception) -> None:
        log_failure(log, "the draft model failed; its sessions go on without it", error)
