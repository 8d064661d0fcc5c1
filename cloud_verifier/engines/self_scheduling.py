"""The contract of an engine that schedules by itself: it is told who may go on, and says what it wrote.

Such an engine (vLLM) has a scheduler, pages and preemption of its own, and decides itself which guesses are right. So
it is not told what to evaluate, as a `TargetEngine` is, but who is due, and with which guesses:

* It knows a sequence's sampler, and the real length of its prompt, from the start.
* A step writes. There is no way back: what it returns is in the engine's log as in ours, so both are always equal.
* How a prompt is read, what is shared, and whose keys and values are given up for whose are its own business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from cloud_verifier.engines.base import EngineInfo, Logprobs, Memory, Sampler, SequenceId, TargetEngine


@dataclass(frozen=True)
class Turn:
    """A sequence that may go on in a step. guesses: how it may go on, in one line; at most `most_guesses`."""

    sequence: SequenceId
    guesses: Sequence[int] = ()


@dataclass(frozen=True)
class Written:
    """What one step did for one sequence.

    tokens: what it goes on with; none while its prompt is read, or if the step had no room for it. logprobs: as many
    entries if `sampler.params.logprobs` is not None, else none. checked: how many of the guesses were evaluated, the
    first ones. positions: all that were evaluated. found: tokens that it had at its first step without evaluating them,
    because another sequence of the same scope began so.
    """

    tokens: Sequence[int]
    logprobs: Sequence[Logprobs]
    checked: int
    positions: int
    found: int


class SelfSchedulingEngine(ABC):
    """Sequences that go on when they are told to.

    Safety contract: not thread-safe; one caller at a time, but any thread. The token at a position is a function of
    (target, tokens before it, sampler) only: neither guesses nor other sequences may change it, bitwise when
    `info.strict`. A step may write more than the guesses and one token, if the engine guesses by itself. Any method may
    raise EngineDead.
    """

    info: EngineInfo
    most_guesses: int

    @abstractmethod
    def open(self, tokens: Sequence[int], sampler: Sampler, scope: str = "") -> SequenceId:
        """A new sequence with these tokens, at least one, that are to be read. Evaluates nothing. Raises EngineFull.

        Sequences of one scope may share what they begin with.
        """

    @abstractmethod
    def step(self, turns: Sequence[Turn]) -> list[Written]:
        """Let distinct sequences go on; results in the order of the turns, which come most important first.

        No other sequence goes on, whatever keys and values it may have to give up. Where there is room for one of them,
        one at least gets on: its prompt is read further, or tokens are written. Raises ValueError, before anything is
        evaluated, for a sequence that is not open or named twice, and for guesses that are too many or outside the
        vocabulary.
        """

    @abstractmethod
    def close(self, sequence: SequenceId) -> None:
        """Free a sequence. Its id must not be used again."""

    @property
    @abstractmethod
    def preemptions(self) -> int:
        """How often keys and values of an open sequence were given up for another's."""

    @property
    @abstractmethod
    def memory(self) -> Memory:
        """How much of its memory for keys and values is in use."""


Engine = TargetEngine | SelfSchedulingEngine
