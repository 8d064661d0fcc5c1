"""The mock target on the product's own pages, few enough to run out of: trunks, twigs, copies, shared beginnings.

Tokens stand for their keys and values. What a row reads it reads from the pages that its line has: a page that is
another's, was not copied or was given up too early shows in the words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
import torch

from cloud_verifier.engines.base import Block, EngineInfo, SequenceId
from cloud_verifier.engines.paged import PagedEngine
from cloud_verifier.engines.pages import Pages
from cloud_verifier.engines.sampling.sampler import Row
from tests.mock_engine import EOS, VOCABULARY_SIZE, next_token

_NOTHING = -1


class _Contents:
    """Of pages: a token for each of their positions."""

    def __init__(self, pages: int, page_tokens: int) -> None:
        self.tokens = np.full((pages, page_tokens), _NOTHING)

    def clear(self, pages: Sequence[int]) -> None:
        self.tokens[list(pages)] = _NOTHING

    def copy(self, source: int, target: int) -> None:
        self.tokens[target] = self.tokens[source]


class PagedMockEngine(PagedEngine):
    """poison: a token at which a step fails, after it has written. twigs: that were kept."""

    def __init__(
        self, pages: int, page_tokens: int = 4, *, max_sequences: int = 8, context_limit: int = 4096, trees: bool = True
    ) -> None:
        self._contents, self._page_tokens = _Contents(pages, page_tokens), page_tokens
        info = EngineInfo(
            "mock", "mock", VOCABULARY_SIZE, (EOS,), context_limit, max_sequences, True, "a mock is exact", trees
        )
        super().__init__(info, Pages(pages, page_tokens, self._contents))
        self.poison: int | None = None
        self.twigs = 0

    @property
    def empty(self) -> bool:
        """Whether nothing is open and no page is held."""
        return not self._sequences and self.memory.used == 0

    def logits(self, blocks: Sequence[Block]) -> list[torch.Tensor]:
        self._check(blocks)
        logits, _ = self._choose(blocks, ())
        self._grow(blocks)
        return list(logits.split([block.choices for block in blocks]))

    def keep(self, sequence: SequenceId, length: int, path: Sequence[int]) -> None:
        self.twigs += list(path) != list(range(len(path)))
        super().keep(sequence, length, path)

    def _choose(self, blocks: Sequence[Block], rows: Sequence[Row]) -> tuple[torch.Tensor, list[int]]:
        for block in blocks:
            self._make_room(block)
        chosen = [token for block in blocks for token in self._evaluated(block)]
        if any(self.poison in block.tokens for block in blocks):
            raise RuntimeError("poisoned token")
        return torch.nn.functional.one_hot(torch.tensor(chosen, dtype=torch.int64), VOCABULARY_SIZE).float(), chosen

    def _evaluated(self, block: Block) -> Iterator[int]:
        """Writes a block into its pages, and then chooses after its rows by what stands there."""
        table, branches = self._sequences[block.sequence], self._branches.get(block.sequence)
        start, tokens = len(table.tokens), block.tokens
        lines = [(table.pages, start, range(len(tokens)))]
        if branches is not None:
            before = len(tokens) - len(branches.parents)
            lines = [(table.pages, start, range(before + branches.trunk))]
            for twig in branches.twigs:
                lines.append((twig.pages, twig.start, range(before + twig.run.first, before + twig.run.last)))
            for row, places in enumerate(branches.copies(start, self._page_tokens)):
                self._contents.tokens.reshape(-1)[places] = tokens[row]
        for pages, first, rows in lines:
            for position, row in zip(count(first), rows):
                self._contents.tokens[pages[position // self._page_tokens], position % self._page_tokens] = tokens[row]
        for pages, first, rows in lines:
            text = self._contents.tokens[pages].reshape(-1).tolist()
            for position, row in zip(count(first), rows):
                if row >= len(tokens) - block.choices:
                    assert _NOTHING not in text[: position + 1]
                    yield next_token(text[: position + 1], block.sampler.seed)
