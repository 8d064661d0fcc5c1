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
from cloud_verifier.engines.branches import Branches, Twig, depths_of, path_to, runs_of
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
        self._branches: dict[SequenceId, Branches] = {}  # of those whose latest block branches
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

    def reserve(self, sequence: SequenceId, tokens: int, parents: Sequence[int] = ()) -> None:
        found = self._find(sequence)
        self._prune(sequence)
        if not parents:
            self._pages.reserve(found, tokens)
            return
        runs, depths = runs_of(parents), depths_of(parents)
        base = len(found.tokens) + tokens - len(parents)
        trunk = runs[0].last
        self._pages.reserve(found, tokens - len(parents) + trunk)
        branches = Branches(tuple(parents), base, trunk, [])
        self._branches[sequence] = branches
        try:
            for run in runs[1:]:
                start = base + depths[run.first]
                own = start // self._pages.page_tokens
                on = branches.twig_of(run.parent)
                shared = (on.pages if on is not None else found.pages)[:own]
                fresh = self._pages.fork(found, start, start + run.last - run.first)
                branches.twigs.append(Twig(run, start, [*shared, *fresh], own))
        except BaseException:
            self._prune(sequence)
            raise

    def _make_room(self, block: Block) -> None:
        """For a block that is to be evaluated, unless it was reserved."""
        branches = self._branches.get(block.sequence)
        base = self.length(block.sequence) + len(block.tokens) - len(block.parents)
        # Another number of tokens before the same branches would write these where nobody reads.
        if branches is None or (branches.parents, branches.base) != (tuple(block.parents), base) or branches.guesses:
            self.reserve(block.sequence, len(block.tokens), block.parents)

    def _prune(self, sequence: SequenceId) -> None:
        """Give up the twigs of a sequence's latest block."""
        if (branches := self._branches.pop(sequence, None)) is not None:
            for twig in reversed(branches.twigs):
                self._pages.give_back(twig.pages[twig.own :])

    def keep(self, sequence: SequenceId, length: int, path: Sequence[int]) -> None:
        found, branches = self._find(sequence), self._branches.get(sequence)
        if branches is None or not path or path[-1] < branches.trunk:
            self.truncate(sequence, length + len(path))
            return
        twig = branches.twig_of(path[-1])
        if twig is None or list(path) != path_to(branches.parents, path[-1]) or length != branches.base:
            raise ValueError(f"guesses {list(path)} are no path of what sequence {sequence} was given")
        self._pages.adopt(found, twig.pages, length, [branches.guesses[guess] for guess in path])
        self._adopted(sequence, twig)
        self.truncate(sequence, length + len(path))

    def _adopted(self, sequence: SequenceId, twig: Twig) -> None:
        """A sequence has got the pages of a twig, all of whose guesses are still there."""

    def length(self, sequence: SequenceId) -> int:
        return len(self._find(sequence).tokens)

    def truncate(self, sequence: SequenceId, length: int) -> None:
        found = self._find(sequence)
        if not 0 <= length <= len(found.tokens):
            raise ValueError(f"sequence {sequence} has {len(found.tokens)} tokens and cannot be truncated to {length}")
        self._prune(sequence)
        if (counts := self._counts.get(sequence)) is not None and counts.length > length:
            counts.shrink(found.tokens[length : counts.length])
        self._pages.truncate(found, length)

    def close(self, sequence: SequenceId) -> None:
        found = self._find(sequence)
        self._prune(sequence)
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
            if block.parents and not self.info.trees:
                raise ValueError("this engine takes no guesses that branch")
            if block.parents and len(block.parents) != block.choices - 1:
                raise ValueError(f"{len(block.parents)} parents are given for {block.choices - 1} guesses")
            if block.parents:
                count += max(depths_of(block.parents)) + 1 - len(block.parents)
            if len(found.tokens) + count > self.info.context_limit:
                raise ValueError(
                    f"sequence {block.sequence} would grow to {len(found.tokens) + count} tokens; "
                    f"the context limit is {self.info.context_limit}"
                )

    def _rows_of(self, block: Block) -> list[Row]:
        """The rows to choose at, one per choice of a block."""
        if not block.choices:
            return []
        guesses = block.tokens[len(block.tokens) - block.choices + 1 :]
        before = block.tokens[: len(block.tokens) - len(guesses)]
        if not block.parents:
            return self._rows_after(block, before, guesses)
        runs = runs_of(block.parents)
        rows = self._rows_after(block, before, guesses[: runs[0].last])
        for run in runs[1:]:
            path = [guesses[guess] for guess in path_to(block.parents, run.first)]
            rows += self._rows_after(block, [*before, *path], guesses[run.first + 1 : run.last])
        return rows

    def _rows_after(self, block: Block, before: Sequence[int], later: Sequence[int]) -> list[Row]:
        """The rows after `before`, and after that and each of `later`."""
        position = len(self._sequences[block.sequence].tokens) + len(before)
        past: Past | Sequence[int] = ()
        if block.sampler.params.needs_history:
            past = self._counted(block).past(before, later)
        return rows_of(block.sampler, range(position, position + len(later) + 1), past)

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
            branches, tokens = self._branches.get(block.sequence), block.tokens
            if branches is not None:
                first = len(tokens) - len(branches.parents)
                self._branches[block.sequence] = replace(branches, guesses=tokens[first:])
                tokens = tokens[: first + branches.trunk]
            self._pages.extend(self._sequences[block.sequence], tokens)
