"""`LlamaCppEngine`: sequences on one unified cache of llama.cpp, all of a step's blocks in as few decodes as may be.

`Pages` counts the room for keys and values and finds equal beginnings, as for every engine; `Cells` is where they lie.
What is kept of closed sequences is kept by holders of llama.cpp that no open sequence has: `_Kept`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cloud_verifier.engines.base import Block, EngineInfo, SequenceId
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


class DecodeError(RuntimeError):
    """llama.cpp could not evaluate a step. The message says what it said."""


@dataclass
class _Kept:
    """Pages of sequences that were closed, a chain from the beginning, and who holds their cells."""

    holder: int
    pages: list[int]


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
            self._pages.reserve(self._sequences[block.sequence], len(block.tokens))
        more = sum(len(block.tokens) for block in blocks) + self.rows.padded(1)
        living = sum(len(table.tokens) for table in self._sequences.values())
        if self.cells.crowded(living + sum(len(kept.pages) for kept in self._kept) * PAGE_TOKENS, more):
            self.compact()
        pieces = self._pieces(blocks)
        try:
            parts = [self._decode(each, copied=len(pieces) > 1) for each in pieces]
        except DecodeError:
            for block in blocks:
                self.cells.undo(self._holders[block.sequence], len(self._sequences[block.sequence].tokens))
            raise
        for block in blocks:
            table = self._sequences[block.sequence]
            self.cells.written(self._holders[block.sequence], len(table.tokens), len(block.tokens))
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts) if parts else torch.empty(0, self.info.vocabulary_size)

    def _pieces(self, blocks: Sequence[Block]) -> list[list[Piece]]:
        """The blocks end to end, cut into decodes of as many rows as one may have."""
        decodes: list[list[Piece]] = []
        rows = self.rows.most
        for block in blocks:
            holder, length = self._holders[block.sequence], len(self._sequences[block.sequence].tokens)
            done, count = 0, len(block.tokens)
            while done < count:
                if rows == self.rows.most:
                    decodes.append([])
                    rows = 0
                take = min(count - done, self.rows.most - rows)
                unwanted = max(0, count - block.choices - done)  # of the tokens from `done` on
                tokens = block.tokens[done : done + take]
                decodes[-1].append(Piece(holder, tokens, length + done, max(0, take - unwanted)))
                done, rows = done + take, rows + take
        return decodes

    def _decode(self, pieces: list[Piece], *, copied: bool) -> torch.Tensor:
        """One decode; logits where they are wanted, in llama.cpp's own memory unless copied."""
        rows = sum(len(piece.tokens) for piece in pieces)
        if lacking := self.rows.padded(rows) - rows:
            pieces = [*pieces, Piece(self.cells.company, [0] * lacking, 0, 0)]
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
    """llama.cpp's sequences that open ones and those that are kept need, and one that passes from one to the other."""
    return max_sequences + KEPT_PAGES + 1


def cells_for(pages: int) -> int:
    """Cells that a context needs for so many pages: a quarter more, for those that are dead between two copies."""
    tokens = pages * PAGE_TOKENS
    return -(-(tokens + tokens // 4 + BATCH_ROWS) // 256) * 256
