"""Penalties: how often a token came before, counted once per sequence and not once per row.

A sequence of 128,000 tokens that is counted anew at each of 65 positions costs seconds. Here its counts follow it as it
grows and is cut back, and the rows of one block share them: a row differs from the one before by a single token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cloud_verifier.engines.sampling.upload import upload
from speculation.sampling import SamplingParams

Integers = npt.NDArray[np.int64]


class TokenCounts:
    """How often each token is in a sequence, and in its answer. The sequence may grow and be cut back at its end."""

    def __init__(self, vocabulary_size: int, prompt_length: int) -> None:
        """Of an empty sequence, whose first `prompt_length` tokens are no answer."""
        self.prompt_length = prompt_length
        self.length = 0
        self._all = np.zeros(vocabulary_size, np.int32)
        self._answer = np.zeros(vocabulary_size, np.int32)

    def extend(self, tokens: Sequence[int]) -> None:
        """The sequence goes on with these."""
        ids = np.asarray(tokens, dtype=np.int64)
        np.add.at(self._all, ids, 1)
        np.add.at(self._answer, ids[max(0, self.prompt_length - self.length) :], 1)
        self.length += len(ids)

    def shrink(self, tokens: Sequence[int]) -> None:
        """The sequence loses these, its last ones."""
        ids = np.asarray(tokens, dtype=np.int64)
        self.length -= len(ids)
        np.subtract.at(self._all, ids, 1)
        np.subtract.at(self._answer, ids[max(0, self.prompt_length - self.length) :], 1)

    def past(self, before: Sequence[int], later: Sequence[int]) -> Past:
        """What rows see of the sequence, if it goes on with `before`, and from one row to the next with `later`."""
        self.extend(before)
        ids = np.flatnonzero(self._all)
        following = np.asarray(later, dtype=np.int64)
        answers = self.length + np.arange(len(following)) >= self.prompt_length
        past = Past(self.length, ids, self._answer[ids], following, self._answer[following], answers)
        self.shrink(before)
        return past


class Past(NamedTuple):
    """The tokens before the rows of one block, as penalties see them.

    position: how many there are before the first row. ids: the distinct ones among these, int64 [u]. answered: how
    often each of them is in the answer, [u]. later: the tokens after that, of which the second row sees one, the third
    two and so on, int64 [m]. later_answered: how often each of those is in the answer before the first row, [m].
    later_answers: whether each of them is of the answer itself, bool [m].
    """

    position: int
    ids: Integers
    answered: npt.NDArray[np.int32]
    later: Integers
    later_answered: npt.NDArray[np.int32]
    later_answers: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, tokens: Sequence[int], position: int, prompt_length: int) -> Past:
        """That of rows at `position` and after it, of a sequence that is counted for them alone."""
        counts = TokenCounts(max(tokens, default=0) + 1, prompt_length)
        counts.extend(tokens[:position])
        return counts.past((), tokens[position:])


def penalise(logits: torch.Tensor, params: SamplingParams, past: Past, positions: Sequence[int]) -> None:
    """The penalties of `speculation.sampling.penalised` (not its bias), in place on float64 logits, [n, V].

    positions: of the rows, which are of one block, [n].
    """
    device = logits.device
    seen = np.asarray(positions) - past.position  # of `later`, by each row
    later = past.later[: seen.max()]
    columns = upload(later, torch.int64, device)
    unpenalised = logits.index_select(1, columns)
    ids = upload(past.ids, torch.int64, device)
    logits.index_copy_(1, ids, _penalised(logits.index_select(1, ids), params, past.answered))
    if not len(later):
        return
    # Tokens that the rows see in part only are done anew. One that came twice is written twice, with the same value.
    sees = np.arange(len(later)) < seen[:, None]
    again = (sees & past.later_answers[: len(later)]).astype(np.int64) @ (later[:, None] == later).astype(np.int64)
    row, column = sees.nonzero()
    where = upload(row, torch.int64, device), upload(column, torch.int64, device)
    answered = (past.later_answered[: len(later)] + again)[row, column]
    logits[where[0], columns[where[1]]] = _penalised(unpenalised[where], params, answered)


def _penalised(values: torch.Tensor, params: SamplingParams, answered: npt.NDArray[np.integer]) -> torch.Tensor:
    """Of tokens that came before; answered: how often each is in the answer, [..., same last axis]."""
    if params.repetition_penalty != 1.0:
        penalty = params.repetition_penalty
        values = torch.where(values > 0, values / penalty, values * penalty)
    if params.presence_penalty or params.frequency_penalty:
        taken = np.where(answered > 0, params.presence_penalty + params.frequency_penalty * answered, 0.0)
        values = values - upload(taken, torch.float64, values.device)
    return values
