"""`TorchEngine`: sequences on a transformers causal LM, all of a step's blocks in one packed forward.

Strict mode is what makes words independent of company. The bits of a row of a matrix product may depend on how many
rows there are: with MKL, in fp32, on fewer than four, or on fewer than 28 that threads share unevenly, but never on a
multiple of eight; on weights that are packed for them (`products`) most products need no company. So rows come in a
fixed multiple and at most so many at a time (`RowRule`), attention in tiles of one shape (`layout`), activation
functions in whole vectors (`activations`). `self_test` checks that this is enough on the machine at hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from cloud_verifier.engines.base import Block, EngineDead, EngineInfo
from cloud_verifier.engines.paged import PagedEngine
from cloud_verifier.engines.pages import PAGE_TOKENS, Pages
from cloud_verifier.engines.sampling.sampler import Row, choose
from cloud_verifier.engines.sampling.upload import upload
from cloud_verifier.engines.torch_engine.activations import steady
from cloud_verifier.engines.torch_engine.attention import PLAIN, STATIC, STRICT, forward_on
from cloud_verifier.engines.torch_engine.cpu_decoder import CpuDecoder
from cloud_verifier.engines.torch_engine.fast import FastForward
from cloud_verifier.engines.torch_engine.fast_path import Parts
from cloud_verifier.engines.torch_engine.graphs import Result
from cloud_verifier.engines.torch_engine.layout import TILE_ROWS, Layout, Segment
from cloud_verifier.engines.torch_engine.pool import LayerShape, PagePool, cache_name
from cloud_verifier.engines.torch_engine.row_rules import PLAIN_ROWS, RowRule, strict_row_rules, summing_as


class OutOfMemory(RuntimeError):
    """A step did not fit into the device's memory. The message says what to lower."""


class TorchEngine(PagedEngine):
    """A transformers causal LM as a target. `load` makes one from a folder or a hub id and checks that it works."""

    def __init__(
        self,
        model: PreTrainedModel,
        info: EngineInfo,
        pool: PagePool,
        *,
        strict: bool = True,
        parts: Parts | None = None,
        cuda_graphs: bool = True,
        decoder: CpuDecoder | None = None,
    ) -> None:
        """model: on its device, in its dtype; it is set to evaluation mode and to this engine's attention.

        pool: with the model's layers; its pages hold at least one sequence of `info.context_limit` tokens. parts: run
        in fixed shapes, for GPUs; None for the simple forward. cuda_graphs: see `FastForward`. decoder: computes the
        simple forward in place of the model; of the same strictness.
        """
        super().__init__(info, Pages(pool.pages, PAGE_TOKENS, pool))
        self.model = model.eval()
        self._device = model.device  # transformers looks for it among all parameters, each time
        self.strict = strict
        self.rows = strict_row_rules(model.device)[0] if strict else PLAIN_ROWS
        self.tile_rows = TILE_ROWS  # the fewest of a tile; see `Layout`
        self._pool = pool
        pool.context_limit = info.context_limit
        self._cache = {cache_name(model): pool, "use_cache": True}
        self.decoder = decoder
        self._takes_rows = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.fast: FastForward | None = None
        if parts is not None:
            self.fast = FastForward(model, pool, info.context_limit, parts, strict=strict, cuda_graphs=cuda_graphs)
        model.set_attn_implementation(STATIC if self.fast is not None else STRICT if strict else PLAIN)
        if strict and model.device.type == "cpu":
            steady(model)

    @property
    def layer_shapes(self) -> list[LayerShape]:
        """What each layer caches of a token."""
        return self._pool.shapes

    def use(self, rule: RowRule) -> None:
        """Forwards have as many rows as this rule says from here on."""
        self.rows = rule
        if self.fast is not None:
            self.fast.forget()

    def _choose(self, blocks: Sequence[Block], rows: Sequence[Row]) -> tuple[torch.Tensor, list[int]]:
        try:
            with summing_as(self.rows, self._device):
                logits, drawn = self._evaluate(blocks, rows)
            return logits, choose(logits, rows, drawn) if rows else []
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                f"a step of {sum(len(block.tokens) for block in blocks)} tokens found too little memory on "
                f"{self.model.device}; lower --gpu-memory-share or --kv-cache-gib, or --step-tokens and --chunk-tokens"
            ) from error
        except torch.AcceleratorError as error:
            if not self._device_works():
                raise EngineDead(f"{self.model.device} does not work any more: {error}") from error
            raise

    @torch.inference_mode()
    def logits(self, blocks: Sequence[Block]) -> list[torch.Tensor]:
        """What `step` would choose from, [choices, V] per block, in the model's dtype. Sequences grow as in `step`."""
        self._check(blocks)
        with summing_as(self.rows, self._device):
            logits, _ = self._evaluate(blocks, ())
        if self.fast is not None:
            logits = logits.clone()
        self._grow(blocks)
        return list(logits.split([block.choices for block in blocks]))

    def _device_works(self) -> bool:
        """Whether the device still computes. After some errors of CUDA nothing does, until the process ends."""
        try:
            return bool(torch.ones(1, device=self._device).sum().item() == 1)
        except RuntimeError:
            return False

    def _evaluate(self, blocks: Sequence[Block], rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits at the rows whose choice is wanted, [sum of choices, V]; writes keys and values, changes no length.

        rows: how these are chosen at, or none. Also returns what was drawn there already, if the forward draws. Both
        may be overwritten by the next evaluation.
        """
        for block in blocks:
            self._make_room(block)
        cuts = self._cuts(blocks)
        if not cuts:
            return torch.empty(0, self.info.vocabulary_size), None
        if self.fast is None:
            parts = [self._forward(cut) for cut in cuts]
            return parts[0] if len(parts) == 1 else torch.cat(parts), None
        results: list[Result] = []
        done = 0
        for cut in cuts:
            result = self.fast(cut.segments, cut.tokens, cut.wanted, rows[done : done + len(cut.wanted)], self.rows)
            # A result is good until the next forward only.
            results.append(result if len(cuts) == 1 else Result(result.logits.clone(), result.drawn.clone()))
            done += len(cut.wanted)
        if len(results) == 1:
            return results[0]
        return torch.cat([result.logits for result in results]), torch.cat([result.drawn for result in results])

    def _cuts(self, blocks: Sequence[Block]) -> list[_Cut]:
        """The blocks end to end, cut into forwards of as many rows as one may have."""
        cuts: list[_Cut] = []
        for block in blocks:
            found, branches = self._sequences[block.sequence], self._branches.get(block.sequence)
            start, unwanted = len(found.tokens), len(block.tokens) - block.choices
            if branches is None:
                self._cut(cuts, found.pages, start, block.tokens, unwanted, [])
                continue
            first = len(block.tokens) - len(branches.parents)
            guesses, before = block.tokens[first:], block.tokens[:first]
            copies = branches.copies(start, PAGE_TOKENS)
            self._cut(cuts, found.pages, start, [*before, *guesses[: branches.trunk]], unwanted, copies)
            for twig in branches.twigs:
                part = slice(twig.run.first, twig.run.last)
                self._cut(cuts, twig.pages, twig.start, guesses[part], 0, copies[first:][part])
        return cuts

    def _cut(
        self,
        cuts: list[_Cut],
        pages: Sequence[int],
        start: int,
        new: Sequence[int],
        unwanted: int,
        copies: Sequence[Sequence[int]],
    ) -> None:
        """Add consecutive rows of one text. unwanted: of the first of them no choice is wanted. copies[i]: where else
        in the pool the keys and values of row i belong."""
        done, count = 0, len(new)
        while done < count:
            if not cuts or len(cuts[-1].tokens) == self.rows.most:
                cuts.append(_Cut([], [], [], []))
            segments, tokens, wanted, copied = cuts[-1]
            take = min(count - done, self.rows.most - len(tokens))
            wanted.extend(range(len(tokens) + max(0, unwanted - done), len(tokens) + take))
            copied += [
                (len(tokens) + i, place) for i, places in enumerate(copies[done : done + take]) for place in places
            ]
            segments.append(Segment(pages, start + done, take))
            tokens.extend(new[done : done + take])
            done += take

    def _forward(self, cut: _Cut) -> torch.Tensor:
        """One packed forward; logits at the wanted rows, [wanted, V]."""
        segments, tokens, wanted, copies = cut
        device = self.model.device
        rows = self.rows.padded(len(tokens))
        layout = Layout(segments, rows, device, copies, self.tile_rows)
        ids = upload([tokens + [0] * (rows - len(tokens))], torch.int64, device)
        # The head's matrix product follows the same rule of rows as all the others.
        padding = [0] * (self.rows.padded(len(wanted)) - len(wanted))
        keep = upload(wanted + padding, torch.int64, device)
        only = {"logits_to_keep": keep} if self._takes_rows else {}
        with forward_on(self._pool, layout):
            if self.decoder is not None:
                return self.decoder(ids, layout, keep)[: len(wanted)]
            out = self.model(input_ids=ids, position_ids=layout.positions, **self._cache, **only)
        logits: torch.Tensor = out.logits[0] if self._takes_rows else out.logits[0, keep]
        return logits[: len(wanted)]


class _Cut(NamedTuple):
    """What one forward evaluates: see `FastForward`. copies: rows whose keys and values a twig needs in a page of its
    own too, and the places there."""

    segments: list[Segment]
    tokens: list[int]
    wanted: list[int]
    copies: list[tuple[int, int]]
