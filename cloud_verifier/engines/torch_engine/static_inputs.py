"""What a step of a fixed shape reads: one buffer that stays where it is, filled by one copy.

A captured graph reads the same addresses each time and runs the same shapes. So steps are cut to a few shapes, every
number that a step needs lies in one tensor, and what a step does not fill does no harm: padding rows write to the
pool's spare page, and what they compute is never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from cloud_verifier.engines.pages import PAGE_TOKENS
from cloud_verifier.engines.sampling.sampler import Row
from cloud_verifier.engines.torch_engine.layout import Segment
from cloud_verifier.engines.torch_engine.row_rules import RowRule

LEAST_ROWS = 8
LEAST_PAGES = 16  # so that short sequences share their shapes
FINE_ROWS, COARSE_ROWS = 64, 512  # in steps of the first up to the second


class Shape(NamedTuple):
    """What one captured step is fixed to.

    rows: tokens with padding. sequences: at most so many. width: rows of one sequence at most; 0 where the kernel does
    not ask. pages: that one sequence sees at most. choices: rows whose logits are wanted, with padding. sampled: some
    are drawn, not just the best.
    """

    rows: int
    sequences: int
    width: int
    pages: int
    choices: int
    sampled: bool

    @property
    def sections(self) -> dict[str, int]:
        """What the buffer holds, in order, and how many numbers of each."""
        return {
            "ids": self.rows,
            "positions": self.rows,
            "places": self.rows,
            "slots": self.rows if self.width else 0,
            "row_of": self.sequences * self.width,
            "ends": self.sequences + 1,
            "seen": self.sequences,
            "table": self.sequences * self.pages,
            "keep": self.choices,
            "seeds": self.choices,
            "at": self.choices,
            "temperatures": self.choices,
        }


def shape_of(
    segments: Sequence[Segment],
    choices: int,
    sampled: bool,
    rule: RowRule,
    most_pages: int,
    *,
    strict: bool,
    steady: bool,
) -> Shape:
    """The shape that a forward over these segments runs in: one of a few.

    strict: rows and choices come as `rule` says. steady: see `Kernel`; with a kernel that is not, nothing else may
    depend on the company in strict mode either.
    """
    tokens = sum(segment.rows for segment in segments)
    if strict and not steady:
        rows = rule.padded(tokens)
        return Shape(rows, rows, rows, most_pages, rows, sampled)
    rows = rule.padded(tokens) if strict else max(LEAST_ROWS, _few(rule.padded(tokens)))
    pages = max(-(-(s.start + s.rows) // PAGE_TOKENS) for s in segments)
    return Shape(
        rows,
        _power_of_two(len(segments)),
        0 if steady else _power_of_two(max(s.rows for s in segments)),
        min(_power_of_two(max(pages, LEAST_PAGES if steady else 1)), most_pages),
        min(rule.padded(max(1, choices)) if strict else max(LEAST_ROWS, _few(choices)), rows),
        sampled,
    )


def _power_of_two(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def _few(rows: int) -> int:
    """The next of a few numbers. Powers of two alone would have a GPU compute up to twice what is asked."""
    if rows <= FINE_ROWS:
        return _power_of_two(rows)
    step = FINE_ROWS if rows <= COARSE_ROWS else COARSE_ROWS // 2
    return -(-rows // step) * step


class Inputs:
    """The views of one buffer, int64, by what they mean.

    ids, positions, places: of each row; places as in `PagePool.write_index`. slots: where in [sequences * width] a row
    lies, and row_of: which row lies there (any for padding); nothing of either where the width is 0. ends: row at which
    each sequence begins, then the end. seen: positions that each sequence sees at its last row. table: its pages,
    [sequences, pages], padded with its own first. keep: rows whose logits are wanted; seeds, at (positions),
    temperatures (float64; 0 for the best): of those.
    """

    def __init__(self, shape: Shape, buffer: torch.Tensor) -> None:
        """buffer: int64 [sum of the sections]."""
        self.shape, self.buffer = shape, buffer
        parts: dict[str, torch.Tensor] = dict(
            zip(shape.sections, buffer.split(list(shape.sections.values())), strict=True)
        )
        self.ids, self.positions, self.places = parts["ids"], parts["positions"], parts["places"]
        self.slots, self.row_of = parts["slots"], parts["row_of"]
        self.ends, self.seen = parts["ends"], parts["seen"]
        self.table = parts["table"].view(shape.sequences, shape.pages)
        self.keep, self.seeds, self.at = parts["keep"], parts["seeds"], parts["at"]
        self.temperatures: torch.Tensor = parts["temperatures"].view(torch.float64)


class StaticLayout:
    """One forward over static inputs, as attention meets it. What is worked out here is worked out once a forward."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.write_index: torch.Tensor = inputs.places

    @cached_property
    def mask(self) -> torch.Tensor:
        """Which positions each row of a grid sees, bool [sequences, 1, width, pages * PAGE_TOKENS]."""
        shape = self.inputs.shape
        rows = self.inputs.positions.index_select(0, self.inputs.row_of).view(shape.sequences, 1, shape.width, 1)
        return torch.arange(shape.pages * PAGE_TOKENS, device=rows.device) <= rows

    @cached_property
    def ends(self) -> torch.Tensor:
        """As in `Inputs`, int32."""
        return self.inputs.ends.int()

    @cached_property
    def seen(self) -> torch.Tensor:
        """As in `Inputs`, int32."""
        return self.inputs.seen.int()

    @cached_property
    def table(self) -> torch.Tensor:
        """As in `Inputs`, int32."""
        return self.inputs.table.int()

    @cached_property
    def padding(self) -> torch.Tensor:
        """Which rows are padding, bool [rows, 1, 1]."""
        rows = torch.arange(self.inputs.shape.rows, device=self.inputs.ids.device)
        return (rows >= self.inputs.ends.select(0, -1)).view(-1, 1, 1)


def fill(
    shape: Shape,
    segments: Sequence[Segment],
    tokens: Sequence[int],
    wanted: Sequence[int],
    rows: Sequence[Row],
    spare_page: int,
    pinned: bool,
) -> torch.Tensor:
    """The numbers of one step on the host, laid out as `Inputs`, in memory that a GPU can read by itself if pinned.

    tokens: of all segments, end to end. wanted: rows whose logits are wanted. rows: how to choose at these; fewer, or
    none, if nothing is to be drawn there.
    """
    # Fresh each time: the copy of the step before may not be over. torch keeps pinned memory and hands it out again.
    packed = torch.zeros(sum(shape.sections.values()), dtype=torch.int64, pin_memory=pinned)
    host = {name: part.numpy() for name, part in vars(Inputs(shape, packed)).items() if isinstance(part, torch.Tensor)}
    host["ids"][: len(tokens)] = tokens
    host["places"][:] = spare_page * PAGE_TOKENS
    table, used = host["table"], len(segments)
    table[used:] = spare_page
    for number, segment in enumerate(segments):
        pages = segment.pages[: -(-(segment.start + segment.rows) // PAGE_TOKENS)]
        table[number, : len(pages)] = pages
        # Padding of the table is masked, but a masked NaN is a NaN still: so no page of another's.
        table[number, len(pages) :] = pages[0]
    starts, counts = np.array([(segment.start, segment.rows) for segment in segments]).T
    ends = host["ends"]
    np.cumsum(counts, out=ends[1 : used + 1])
    ends[used + 1 :] = total = ends[used]
    host["seen"][:used] = starts + counts
    owner = np.repeat(np.arange(used), counts)
    place = np.arange(total) - ends[owner]  # of a row among its sequence's
    positions = starts[owner] + place
    host["positions"][:total] = positions
    host["places"][:total] = table[owner, positions // PAGE_TOKENS] * PAGE_TOKENS + positions % PAGE_TOKENS
    if shape.width:
        host["slots"][:total] = owner * shape.width + place
        grid = host["row_of"].reshape(shape.sequences, shape.width)
        grid[:used] = ends[:used, None] + np.minimum(np.arange(shape.width), counts[:, None] - 1)
    host["keep"][: len(wanted)] = wanted
    if any(row.plain for row in rows):
        drawn = [(row.sampler.seed, row.position, row.sampler.params.noise_temperature) for row in rows]
        plain = np.array([row.plain for row in rows])
        seeds, at, temperatures = zip(*drawn, strict=True)
        host["seeds"][: len(rows)] = np.where(plain, np.array(seeds, dtype=np.uint64).view(np.int64), 0)
        host["at"][: len(rows)] = np.where(plain, at, 0)
        host["temperatures"][: len(rows)] = np.where(plain, temperatures, 0.0)
    return packed
