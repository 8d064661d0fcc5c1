"""A session: one answer in the making. State, and the rules by which a step's result becomes log; no I/O, no engine."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from cloud_verifier.engines.base import Choices, Logprobs, Sampler, SequenceId
from cloud_verifier.errors import VerifierError
from cloud_verifier.text import AnswerText
from speculation.acceptance import Rule, shared_noise
from speculation.line import VerifierLine
from speculation.pace import PATIENCE_UNLIMITED_MS


class FinishReason(Enum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass
class Statistics:
    """What a session cost and gained; the fields are those of `SessionStatistics` in the contract."""

    verified_tokens: int = 0
    accepted_tokens: int = 0
    target_forwards: int = 0
    fills: int = 0
    forward_us: int = 0
    resumes: int = 0


@dataclass
class Echo:
    """The device's latest clock reading, and when it came (seconds, monotonic)."""

    sent_at_us: int = 0
    received_s: float = 0.0


@dataclass
class LastStep:
    """How the session's latest engine step went."""

    queue_us: int = 0
    forward_us: int = 0
    batch_size: int = 0


@dataclass(eq=False)
class Session:
    """One answer.

    line holds the log. drafted[i], logprobs[i] and text.pieces[i] belong to answer token i. cached: tokens that the
    engine holds; sequence is None before the first step and after the last. sent: log length that went out on the
    present stream. attachment counts streams, so that an old stream notices that a new one took over. half_closed: the
    present stream will bring no more drafts, so there is nothing to be patient for.
    """

    session_id: str
    sampler: Sampler
    line: VerifierLine
    text: AnswerText
    stop_ids: frozenset[int]
    max_length: int
    max_lookahead: int
    patience_ms: int
    ready_since_s: float
    rule: Rule = shared_noise
    want_text: bool = False
    sequence: SequenceId | None = None
    cached: int = 0
    drafted: list[bool] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    nudged: bool = False
    finish: FinishReason | None = None
    error: VerifierError | None = None
    sent: int = 0
    attachment: int = 0
    attached: bool = True
    half_closed: bool = False
    echo: Echo = field(default_factory=Echo)
    last_step: LastStep = field(default_factory=LastStep)
    statistics: Statistics = field(default_factory=Statistics)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def prompt_length(self) -> int:
        """Position of the first answered token."""
        return self.sampler.prompt_length

    @property
    def over(self) -> bool:
        """Whether nothing more will be written."""
        return self.finish is not None or self.error is not None

    @property
    def answer(self) -> list[int]:
        """Answer tokens."""
        return self.line.log[self.prompt_length :]

    @property
    def reading(self) -> bool:
        """Whether part of the prompt (or of what the answer continues from) is still to be evaluated."""
        return self.line.length - self.cached > 1 or self.line.length == self.prompt_length

    def due_s(self, detached_tokens: int) -> float | None:
        """When this session may take part in a step (seconds, monotonic); None if only a message can change that.

        A detached session writes on for a while, so that a device that was away finds its words ready.
        """
        if self.over or (not self.attached and self.line.length - self.sent >= detached_tokens):
            return None
        if self.reading or self.nudged or self.line.guesses or self.half_closed or self.patience_ms == 0:
            return self.ready_since_s
        if self.patience_ms == PATIENCE_UNLIMITED_MS:
            return None
        return self.ready_since_s + self.patience_ms / 1000

    def guesses(self) -> list[int]:
        """The guesses worth evaluating now: never past the end of the answer."""
        return self.line.guesses[: max(0, self.max_length - self.line.length - 1)]

    def replay(self, tokens: Sequence[int]) -> None:
        """Take over answer tokens from an earlier life of the session (`continue_from`)."""
        for token in tokens:
            if self.sampler.params.logprobs is not None:
                self.logprobs.append(Logprobs(math.nan, (), ()))  # known to the device from that life
            self._append(token, drafted=False)
            if self.finish:
                return

    def take(self, guesses: Sequence[int], choices: Choices) -> None:
        """Turn a step's choices into log. guesses: the evaluated ones, len(choices.tokens) - 1."""
        self.nudged = False
        stats = self.statistics
        accepted = self.rule(guesses, choices.tokens)
        stats.target_forwards += 1
        stats.verified_tokens += len(guesses)
        stats.fills += not guesses
        for index, token in enumerate(choices.tokens[: accepted + 1]):
            if choices.logprobs:
                self.logprobs.append(choices.logprobs[index])
            self._append(token, drafted=index < accepted)
            stats.accepted_tokens += index < accepted
            if self.finish:
                break
        self.cached = min(self.cached, self.line.length - 1)

    def _append(self, token: int, *, drafted: bool) -> None:
        self.line.commit([token])
        self.drafted.append(drafted)
        stopped_by_text = self.text.push(token)
        if stopped_by_text or token in self.stop_ids:
            self.finish = FinishReason.STOP
        elif self.line.length >= self.max_length:
            self.finish = FinishReason.LENGTH
