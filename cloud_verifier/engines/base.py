"""The contract of a target engine: many token sequences, stepped together in one forward.

An engine knows nothing about sessions, lines, networks or time. It holds sequences whose keys and values are cached,
evaluates a ragged block of new tokens for each of them in one forward, and says what the target chooses at the
positions asked for, under each sequence's own sampling parameters and noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NewType

from speculation.sampling import SamplingParams

SequenceId = NewType("SequenceId", int)


class ModelError(Exception):
    """A model that cannot be served. The message says what was wrong, what was expected and what to do."""


class EngineFull(Exception):
    """No room for another sequence, or for what is to be added to one. The message says which setting makes more."""


class EngineDead(Exception):
    """The engine can do nothing more in this process, for no session: it must be started again."""


@dataclass(frozen=True)
class EngineInfo:
    """What an engine serves.

    name: for people. fingerprint: equal fingerprints compute the same (weights, precision, kernels, strictness).
    eos_ids: tokens that end an answer, as far as the model's configuration tells.
    context_limit: longest sequence, in tokens. max_sequences: open at one time. strict: the start-up self-test found
    batched, alone and token-by-token evaluation bitwise equal; strict_report says what it found, in a sentence.
    trees: a step takes guesses that branch, see `Block`.
    """

    name: str
    fingerprint: str
    vocabulary_size: int
    eos_ids: tuple[int, ...]
    context_limit: int
    max_sequences: int
    strict: bool
    strict_report: str
    trees: bool = False


@dataclass(frozen=True)
class Memory:
    """The pages of keys and values: used by open sequences, cached, free; all 0 for an engine without pages.

    prefix_query_tokens: those that sequences were opened with, ever. prefix_hit_tokens: those of them that were there.
    """

    used: int = 0
    cached: int = 0
    free: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0


@dataclass(frozen=True)
class Sampler:
    """How one sequence's tokens are chosen. prompt_length: penalties tell prompt from answer by it."""

    params: SamplingParams
    seed: int
    prompt_length: int


@dataclass(frozen=True)
class Block:
    """New tokens of one sequence for one step.

    tokens: at least one; they go to positions length .. length + len(tokens) - 1 of the sequence. choices: how many of
    the last tokens the target's choice of successor is wanted for (0 while a prompt is still being read).

    parents: if the last `choices - 1` tokens are guesses that branch, the index among them of what each hangs on, less
    than its own; -1 for the token before the first of them. Empty: each token follows the one before it. With parents,
    guess i stands right after what it hangs on, whatever lies between them in the block. Only for engines with
    `info.trees`.
    """

    sequence: SequenceId
    tokens: Sequence[int]
    choices: int
    sampler: Sampler
    parents: Sequence[int] = ()


@dataclass(frozen=True)
class Logprobs:
    """The target's own log-probabilities at one position, before temperature and filters."""

    logprob: float
    top_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Choices:
    """What the target chose after each of the last `Block.choices` tokens, in order.

    tokens: as many ids. logprobs: as many entries if `sampler.params.logprobs` is not None, else empty.
    """

    tokens: Sequence[int]
    logprobs: Sequence[Logprobs] = field(default=())


class TargetEngine(ABC):
    """Sequences and their evaluation.

    Safety contract: not thread-safe; one caller at a time, but any thread. Ids passed in must be open. The choice at a
    position is a function of (target, tokens up to it, sampler) only: neither the other blocks of a step nor how the
    tokens were cut into blocks may change it, bitwise when `info.strict`. Any method may raise EngineDead; whatever
    else one raises concerns the sequences that it was called for and no others.
    """

    info: EngineInfo

    @abstractmethod
    def open(self, tokens: Sequence[int] = (), scope: str = "") -> SequenceId:
        """A new sequence that is to begin with these tokens. Raises EngineFull.

        Its `length` tells how many of them it has already, because another sequence of the same scope began so; never
        all, so that there is something to evaluate. The others are given to `step`.
        """

    @abstractmethod
    def length(self, sequence: SequenceId) -> int:
        """Tokens cached for a sequence."""

    @abstractmethod
    def reserve(self, sequence: SequenceId, tokens: int, parents: Sequence[int] = ()) -> None:
        """Make room for so many tokens more, so that steps cannot fail for want of it. Raises EngineFull.

        parents: of the last of them, if they branch, see `Block`. `truncate` gives back what a sequence does not use.
        """

    @property
    def memory(self) -> Memory:
        """How much of its memory for keys and values is in use."""
        return Memory()

    @abstractmethod
    def step(self, blocks: Sequence[Block]) -> list[Choices]:
        """Evaluate one block each of distinct sequences in one forward; results in the order of the blocks.

        Every sequence grows by its whole block; by one that branches, up to before the first guess that does not follow
        the token before it, and `keep` must come next for it. Raises ValueError, before anything is evaluated, for an
        empty block, an id outside the vocabulary, a sequence named twice, or a sequence that would outgrow
        `info.context_limit`; and EngineFull, so too, if there is no room that was not reserved. After any error every
        sequence has the length it had before.
        """

    @abstractmethod
    def truncate(self, sequence: SequenceId, length: int) -> None:
        """Keep the first `length` tokens, and no room for more. Raises ValueError unless 0 <= length <= the present."""

    def keep(self, sequence: SequenceId, length: int, path: Sequence[int]) -> None:
        """Of the latest block keep these guesses: as `truncate` to `length` and then these tokens.

        length: of the sequence with all of the block that is no guess. path: indices among the guesses, each hanging on
        the one before it, the first on the log.
        """
        assert list(path) == list(range(len(path))), "guesses that branch need an engine with trees"
        self.truncate(sequence, length + len(path))

    @abstractmethod
    def close(self, sequence: SequenceId) -> None:
        """Free a sequence. Its id must not be used again."""
