"""`LlamaCppEngine`: sequences on one unified cache of llama.cpp, all of a step's blocks in as few decodes as may be.

`Pages` counts the room for keys and values and finds equal beginnings, as for every engine; `Cells` is where they lie.
What is kept of closed sequences is kept by holders of llama.cpp that no open sequence has: `_Kept`. A twig has a holder
of its own, to whom the cells of its path belong as well as to those whose guesses they are. So its rows read these very
cells, in the same order as if nothing else had been guessed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch

from cloud_verifier.engines.base import Block, EngineFull, EngineInfo, SequenceId
from cloud_verifier.engines.branches import Twig, path_to
from cloud_verifier.engines.llama_cpp.batch import Batch, Piece
from cloud_verifier.engines.llama_cpp.cells import MOST_HOLDERS, Cells, Chain
from cloud_verifier.engines.llama_cpp.model import GgufModel
from cloud_verifier.engines.llama_cpp.row_rules import BATCH_ROWS, PLAIN_ROWS, RowRule
from cloud_verifier.engines.paged import PagedEngine
from cloud_verifier.engines.pages import PAGE_TOKENS, Pages
from cloud_verifier.engines.sampling.sampler import Row, choose
from outrider_models.llama_cpp.api import LOG

KEPT_PAGES = 64  # of closed sequences: a step looks at the cells of all, whosever they are
MOST_SEQUENCES = MOST_HOLDERS - KEPT_PAGES - 1
MOST_TWIGS = 64  # of all sequences


class DecodeError(RuntimeError):
    """llama.cpp could not evaluate a step. The message says what it said."""


@dataclass
class _Kept:
    """Pages of sequences that were closed, a chain from the beginning, and who holds their cells."""

    holder: int
    pages: list[int]


class _Branch(NamedTuple):
    """Who holds a line of the latest block that is not the sequence's own, and from which position on nobody else."""

    holder: int
    start: int


class _Line(NamedTuple):
    """Consecutive rows of a block. position: of the first. shared: rows before them on their path."""

    holder: int
    position: int
    rows: range
    shared: Sequence[int]


class _Contents:
    """What `Pages` has done to the contents of pages: they lie in cells, so all there is to do is to give those up."""

    def __init__(self, give_up: Callable[[Collection[int]], None]) -> None:
        self._give_up = give_up

    def clear(self, pages: Sequence[int]) -> None:
        """They get other contents."""
        self._give_up(pages)

    def copy(self, _source: int, target: int) -> None:
        """A sequence goes on within a page that others have; the first cells of it are the sequence's already."""
        self._give_up([target])


class LlamaCppEngine(PagedEngine):
    """A GGUF file as a target. `load` makes one and tries it."""

    def __init__(self, model: GgufModel, context: Any, info: EngineInfo, pages: int) -> None:
        """context: llama.cpp's, unified, with `cells_for(pages)` cells, batches of `BATCH_ROWS` and one sequence more
        than `holders_for(info.max_sequences)`; the engine frees it. pages: of `PAGE_TOKENS` tokens; they hold at least
        one sequence of `info.context_limit`.
        """
        super().__init__(info, Pages(pages, PAGE_TOKENS, _Contents(self._give_up)))
        self.model = model
        self.rows = PLAIN_ROWS
        self._api = model.api
        self._context = context
        weakref.finalize(self, model.api.llama_free, context)
        holders = holders_for(info.max_sequences)
        self.cells = Cells(model.api, context, holders, PAGE_TOKENS)
        self._batch = Batch(model.api, BATCH_ROWS)
        self._free_holders = list(range(holders - 1, -1, -1))
        self._holders: dict[SequenceId, int] = {}
        self._twigs: dict[SequenceId, list[_Branch]] = {}  # in the order of `Branches.twigs`
        self._most_twigs = holders - _lasting_holders(info.max_sequences)
        self._kept: list[_Kept] = []

    def use(self, rule: RowRule) -> None:
        """Decodes have as many rows as this rule says from here on."""
        self.rows = rule

    def open(self, tokens: Sequence[int] = (), scope: str = "") -> SequenceId:
        sequence = super().open(tokens, scope)
        table, holder = self._sequences[sequence], self._new_holder()
        if table.pages:
            self.cells.share(self._holder_of(table.pages), holder, len(table.tokens))
        self._holders[sequence] = holder
        self._drop_repeated(table.pages)
        return sequence

    def reserve(self, sequence: SequenceId, tokens: int, parents: Sequence[int] = ()) -> None:
        super().reserve(sequence, tokens, parents)
        if not parents:
            return
        twigs = self._branches[sequence].twigs
        if sum(map(len, self._twigs.values())) + len(twigs) > self._most_twigs:
            self._prune(sequence)
            raise EngineFull(f"llama.cpp has sequences for {self._most_twigs} branches; lower --max-sessions for more")
        self._twigs[sequence] = [_Branch(self._new_holder(), twig.start) for twig in twigs]

    def keep(self, sequence: SequenceId, length: int, path: Sequence[int]) -> None:
        before = self._holders.get(sequence)
        super().keep(sequence, length, path)
        if self._holders[sequence] != before:
            self.cells.drop(self._holders[sequence], length + len(path))

    def _adopted(self, sequence: SequenceId, twig: Twig) -> None:
        """Its holder is the sequence's now; whom it parts from keep what comes after that, until they are pruned."""
        branches, held = self._branches[sequence], self._twigs[sequence]
        kept = branches.twigs.index(twig)
        start, on = held[kept].start, branches.twig_of(twig.run.parent)
        while on is not None:
            place = branches.twigs.index(on)
            start, held[place] = held[place].start, held[place]._replace(start=start)
            on = branches.twig_of(on.run.parent)
        holder = held.pop(kept).holder
        held.insert(0, _Branch(self._holders[sequence], start))
        self._holders[sequence] = holder

    def _prune(self, sequence: SequenceId) -> None:
        evaluated = sequence in self._branches and bool(self._branches[sequence].guesses)
        for holder, start in reversed(self._twigs.pop(sequence, [])):
            if evaluated:
                self.cells.leave(holder, start)
            self._free_holders.append(holder)
        super()._prune(sequence)

    def truncate(self, sequence: SequenceId, length: int) -> None:
        table = self._find(sequence)
        before, known = len(table.tokens), table.pages[: table.known]
        shared = length < len(known) * PAGE_TOKENS
        if shared and length >= 0:
            self._keep(known, self._holders[sequence])
        super().truncate(sequence, length)
        if length < before:
            self.cells.drop(self._holders[sequence], length, shared=shared)
        if shared:
            self._trim()

    def close(self, sequence: SequenceId) -> None:
        table = self._find(sequence)
        self._pages.reserve(table, 0)  # by which full pages become known
        known = table.pages[: table.known]
        holder = self._holders.pop(sequence)
        super().close(sequence)
        self.cells.drop(holder, len(known) * PAGE_TOKENS)
        if known and not self._is_held(known):
            self._drop_repeated(known)
            self._kept.append(_Kept(holder, known))
        else:
            self.cells.drop(holder, 0, shared=True)
            self._free_holders.append(holder)
        self._trim()

    def forget(self) -> None:
        self._trim(0)

    def logits(self, blocks: Sequence[Block]) -> list[torch.Tensor]:
        """What `step` would choose from, float32 [choices, V] per block. Sequences grow as in `step`."""
        self._check(blocks)
        logits = self._evaluate(blocks).clone()
        self._grow(blocks)
        return list(logits.split([block.choices for block in blocks]))

    def compact(self) -> None:
        """Lay all keys and values anew, those that nobody has any more left out."""
        chains = [
            Chain(self._holders[sequence], table.pages, len(table.tokens))
            for sequence, table in self._sequences.items()
        ]
        for sequence, branches in self._branches.items():
            for number, twig in enumerate(branches.twigs if branches.guesses else ()):
                holder = self._twigs[sequence][number].holder
                chains.append(Chain(holder, twig.pages, twig.start + twig.run.last - twig.run.first))
                # Only full pages are shared with others from now on.
                self._twigs[sequence][number] = _Branch(holder, twig.own * PAGE_TOKENS)
        chains += [Chain(kept.holder, kept.pages, len(kept.pages) * PAGE_TOKENS) for kept in self._kept]
        self.cells.compact(chains)

    # --- evaluation ---

    def _choose(self, blocks: Sequence[Block], rows: Sequence[Row]) -> tuple[torch.Tensor, list[int]]:
        logits = self._evaluate(blocks)
        return logits, choose(logits, rows) if rows else []

    def _evaluate(self, blocks: Sequence[Block]) -> torch.Tensor:
        """Logits at the rows whose choice is wanted, float32 [sum of choices, V], good until the next evaluation.

        Writes keys and values, changes no length.
        """
        for block in blocks:
            self._make_room(block)
        more = sum(len(block.tokens) for block in blocks) + self.rows.padded(1)
        living = sum(len(table.tokens) for table in self._sequences.values())
        if self.cells.crowded(living + sum(len(kept.pages) for kept in self._kept) * PAGE_TOKENS, more):
            self.compact()
        for block in blocks:
            for holder, _ in self._twigs.get(block.sequence, ()):
                self.cells.share(self._holders[block.sequence], holder, self.length(block.sequence))
        decodes = self._decodes(blocks)
        try:
            parts = [self._decode(pieces, copied=len(decodes) > 1) for pieces in decodes]
        except DecodeError:
            for block in blocks:
                self.cells.undo(self._holders[block.sequence], self.length(block.sequence))
                for holder, _ in self._twigs.get(block.sequence, ()):
                    self.cells.undo(holder, 0)
            raise
        for line in [line for block in blocks for line in self._lines(block)]:
            self.cells.written(line.holder, line.position, len(line.rows))
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts) if parts else torch.empty(0, self.info.vocabulary_size)

    def _lines(self, block: Block) -> list[_Line]:
        """A block as one line, or as its trunk and its twigs."""
        sequence, length = block.sequence, self.length(block.sequence)
        branches = self._branches.get(sequence)
        if branches is None:
            return [_Line(self._holders[sequence], length, range(len(block.tokens)), ())]
        before = len(block.tokens) - len(branches.parents)
        lines = [_Line(self._holders[sequence], length, range(before + branches.trunk), ())]
        for held, twig in zip(self._twigs[sequence], branches.twigs, strict=True):
            path = [before + guess for guess in path_to(branches.parents, twig.run.parent)]
            rows = range(before + twig.run.first, before + twig.run.last)
            lines.append(_Line(held.holder, twig.start, rows, [*range(before), *path]))
        return lines

    def _pieces(self, block: Block) -> Iterator[Piece]:
        """A block, cut wherever other lines go on."""
        lines, unwanted = self._lines(block), len(block.tokens) - block.choices
        holders: list[tuple[int, ...]] = [()] * len(block.tokens)
        for line in lines:
            for row in (*line.rows, *line.shared):
                holders[row] += (line.holder,)
        for line in lines:
            for whose, group in groupby(line.rows, key=holders.__getitem__):
                rows = list(group)
                first, last = rows[0], rows[-1] + 1
                position = line.position + first - line.rows.start
                wanted = max(0, last - max(first, unwanted))
                yield Piece(whose, block.tokens[first:last], position, wanted)

    def _decodes(self, blocks: Sequence[Block]) -> list[list[Piece]]:
        """The blocks end to end, cut into decodes of as many rows as one may have."""
        decodes: list[list[Piece]] = []
        rows = self.rows.most
        for whose, tokens, position, wanted in (piece for block in blocks for piece in self._pieces(block)):
            done, count = 0, len(tokens)
            while done < count:
                if rows == self.rows.most:
                    decodes.append([])
                    rows = 0
                take = min(count - done, self.rows.most - rows)
                unwanted = max(0, count - wanted - done)  # of the tokens from `done` on
                part = tokens[done : done + take]
                decodes[-1].append(Piece(whose, part, position + done, max(0, take - unwanted)))
                done, rows = done + take, rows + take
        return decodes

    def _decode(self, pieces: list[Piece], *, copied: bool) -> torch.Tensor:
        """One decode; logits where they are wanted, in llama.cpp's own memory unless copied."""
        rows = sum(len(piece.tokens) for piece in pieces)
        if lacking := self.rows.padded(rows) - rows:
            pieces = [*pieces, Piece((self.cells.company,), [0] * lacking, 0, 0)]
        wanted = sum(piece.wanted for piece in pieces)
        unasked = self.rows.padded(wanted) - wanted if wanted else 0  # the head's products follow the rule, too
        batch, asked = self._batch.filled(pieces, unasked)
        status = self._api.llama_decode(self._context, batch)
        if lacking:
            self.cells.undo(self.cells.company, 0)
        if status != 0:
            raise DecodeError(f"llama.cpp could not evaluate {rows} tokens: status {status}, {LOG.last_error()}")
        if not wanted:
            return torch.empty(0, self.info.vocabulary_size)
        rows_of_logits = self._api.llama_get_logits(self._context)
        shape = wanted + unasked, self.info.vocabulary_size
        logits = torch.from_numpy(np.ctypeslib.as_array(rows_of_logits, shape)[asked])
        return logits.clone() if copied else logits

    # --- what is kept of closed sequences ---

    def _chains(self) -> list[tuple[int, Sequence[int]]]:
        """Holders and the pages that others may share with them."""
        held: list[tuple[int, Sequence[int]]] = [
            (holder, self._sequences[sequence].pages[: self._sequences[sequence].known])
            for sequence, holder in self._holders.items()
        ]
        return [*held, *((kept.holder, kept.pages) for kept in self._kept)]

    def _new_holder(self) -> int:
        if not self._free_holders:
            for table in self._sequences.values():
                self._drop_repeated(table.pages[: table.known])
        return self._free_holders.pop()

    def _holder_of(self, pages: list[int]) -> int:
        """Somebody who has the cells of a chain of known pages."""
        count = len(pages)
        return next(holder for holder, others in self._chains() if others[:count] == pages)

    def _is_held(self, pages: list[int]) -> bool:
        return any(others[: len(pages)] == pages for _, others in self._chains())

    def _keep(self, pages: list[int], source: int) -> None:
        """Pages of an open sequence that it is about to give up outlive that."""
        holder = self._new_holder()
        self.cells.share(source, holder, len(pages) * PAGE_TOKENS)
        self._drop_repeated(pages)
        self._kept.append(_Kept(holder, pages))

    def _drop_repeated(self, pages: list[int]) -> None:
        """Whoever has all these pages has what is kept of a beginning of them."""
        for kept in [kept for kept in self._kept if kept.pages == pages[: len(kept.pages)]]:
            self._cut(kept, 0)

    def _trim(self, most: int | None = None) -> None:
        """Keep no more than so many pages (KEPT_PAGES), and no cells at all if there is nobody any more."""
        self._give_up(self._pages.forget(KEPT_PAGES if most is None else most))
        if not self._holders and not self._kept:
            self.cells.clear()

    def _give_up(self, pages: Collection[int]) -> None:
        for kept in list(self._kept) if pages else ():
            gone = [number for number, page in enumerate(kept.pages) if page in pages]
            if gone:
                self._cut(kept, gone[0])

    def _cut(self, kept: _Kept, pages: int) -> None:
        """Keep the first pages of a chain."""
        self.cells.drop(kept.holder, pages * PAGE_TOKENS, shared=True)
        del kept.pages[pages:]
        if not pages:
            self._kept.remove(kept)
            self._free_holders.append(kept.holder)


def holders_for(max_sequences: int) -> int:
    """llama.cpp's sequences that open ones, those that are kept, and twigs need."""
    return min(_lasting_holders(max_sequences) + MOST_TWIGS, MOST_HOLDERS)


def _lasting_holders(max_sequences: int) -> int:
    """Without those of twigs; one of them passes from an open sequence to what is kept of it."""
    return max_sequences + KEPT_PAGES + 1


def cells_for(pages: int) -> int:
    """Cells that a context needs for so many pages: a quarter more, for those that are dead between two copies."""
    tokens = pages * PAGE_TOKENS
    return -(-(tokens + tokens // 4 + BATCH_ROWS) // 256) * 256
