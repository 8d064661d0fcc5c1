"""What every engine does that keeps keys and values in pages and chooses with torch: sequences, checks, rows, results.

An engine adds how tokens are evaluated: `_choose`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch

from cloud_verifier.engines.base import (
    Block,
    Choices,
    EngineFull,
    EngineInfo,
    Logprobs,
    Memory,
    SequenceId,
    TargetEngine,
)
from cloud_verifier.engines.pages import Pages, Table
from cloud_verifier.engines.sampling.penalties import Past, TokenCounts
from cloud_verifier.engines.sampling.sampler import Row, logprobs, rows_of


class PagedEngine(TargetEngine):
    """Open sequences, each with its table of pages."""

    def __init__(self, info: EngineInfo, pages: Pages) -> None:
        """pages: they hold at least one sequence of `info.context_limit` tokens."""
        self.info = info
        self._pages = pages
        self._sequences: dict[SequenceId, Table] = {}
        self._counts: dict[SequenceId, TokenCounts] = {}  # of those whose penalties need them
        self._opened = 0

    @abstractmethod
    def _choose(self, blocks: Sequence[Block], rows: Sequence[Row]) -> tuple[torch.Tensor, list[int]]:
        """Evaluate checked blocks, and choose a token at each row.

        rows: one for each choice that is wanted, in order. Returns logits, [rows, V], good until the next evaluation,
        and as many tokens. Lengths stay as they are; after an error so does all else.
        """

    @abstractmethod
    def logits(self, blocks: Sequence[Block]) -> list[torch.Tensor]:
        """What `step` would choose from, [choices, V] per block, in the model's dtype. Sequences grow as in `step`."""

    def describe(self, **changes: object) -> None:
        """Replace fields of `info`, for what is known only after trying (strictness)."""
        self.info = replace(self.info, **changes)  # type: ignore[arg-type]

    @property
    def memory(self) -> Memory:
        return self._pages.memory

    def open(self, tokens: Sequence[int] = (), scope: str = "") -> SequenceId:
        if len(self._sequences) >= self.info.max_sequences:
            raise EngineFull(
                f"all {self.info.max_sequences} sequences of the engine are open; close one or raise max_sequences"
            )
        self._opened += 1
        sequence = SequenceId(self._opened)
        self._sequences[sequence] = self._pages.open(tokens, scope)
        return sequence

    def reserve(self, sequence: SequenceId, tokens: int) -> None:
        self._pages.reserve(self._find(sequence), tokens)

    def length(self, sequence: SequenceId) -> int:
        return len(self._find(sequence).tokens)

    def truncate(self, sequence: SequenceId, length: int) -> None:
        found = self._find(sequence)
        if not 0 <= length <= len(found.tokens):
            raise ValueError(f"sequence {sequence} has {len(found.tokens)} tokens and cannot be truncated to {length}")
        if (counts := self._counts.get(sequence)) is not None and counts.length > length:
            counts.shrink(found.tokens[length : counts.length])
        self._pages.truncate(found, length)

    def close(self, sequence: SequenceId) -> None:
        found = self._find(sequence)
        del self._sequences[sequence]
        self._counts.pop(sequence, None)
        self._pages.close(found)

    def forget(self) -> None:
        """Give up what is kept of closed sequences."""
        self._pages.forget()

    @torch.inference_mode()
    def step(self, blocks: Sequence[Block]) -> list[Choices]:
        self._check(blocks)
        rows = [row for block in blocks for row in self._rows_of(block)]
        logits, tokens = self._choose(blocks, rows)
        results: list[Choices] = []
        first = 0
        for block in blocks:
            last = first + block.choices
            wanted: list[Logprobs] = []
            if (top := block.sampler.params.logprobs) is not None and block.choices:
                wanted = logprobs(logits[first:last], tokens[first:last], top)
            results.append(Choices(tuple(tokens[first:last]), tuple(wanted)))
            first = last
        self._grow(blocks)
        return results

    def _find(self, sequence: SequenceId) -> Table:
        try:
            return self._sequences[sequence]
        except KeyError:
            raise ValueError(f"sequence {sequence} is not open") from None

    def _check(self, blocks: Sequence[Block]) -> None:
        seen = set()
        for block in blocks:
            found, count = self._find(block.sequence), len(block.tokens)
            if block.sequence in seen:
                raise ValueError(f"sequence {block.sequence} is named twice in one step")
            seen.add(block.sequence)
            if count == 0:
                raise ValueError(f"the block of sequence {block.sequence} is empty")
            if not 0 <= block.choices <= count:
                raise ValueError(f"{block.choices} choices are wanted of a block of {count} tokens")
            if min(block.tokens) < 0 or max(block.tokens) >= self.info.vocabulary_size:
                raise ValueError(
                    f"the block of sequence {block.sequence} has a token id outside 0..{self.info.vocabulary_size - 1}"
                )
            if len(found.tokens) + count > self.info.context_limit:
                raise ValueError(
                    f"sequence {block.sequence} would grow to {len(found.tokens) + count} tokens; "
                    f"the context limit is {self.info.context_limit}"
                )

    def _rows_of(self, block: Block) -> list[Row]:
        """The rows to choose at, one per choice of a block."""
        length, count = len(self._sequences[block.sequence].tokens), len(block.tokens)
        past: Past | Sequence[int] = ()
        if block.sampler.params.needs_history and block.choices:
            before = count - block.choices + 1
            past = self._counted(block).past(block.tokens[:before], block.tokens[before:])
        return rows_of(block.sampler, range(length + count - block.choices + 1, length + count + 1), past)

    def _counted(self, block: Block) -> TokenCounts:
        """How often each token is in a block's sequence by now. Only what came since the last time is counted."""
        tokens, counts = self._sequences[block.sequence].tokens, self._counts.get(block.sequence)
        if counts is None or counts.prompt_length != block.sampler.prompt_length:
            counts = TokenCounts(self.info.vocabulary_size, block.sampler.prompt_length)
            self._counts[block.sequence] = counts
        counts.extend(tokens[counts.length :])
        return counts

    def _grow(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            self._pages.extend(self._sequences[block.sequence], block.tokens)
