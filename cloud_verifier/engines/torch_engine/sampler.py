"""The torch twin of `speculation.sampling`: the target's choice at many rows of logits at once.

A row's choice depends on that row alone. So every reduction here is one whose order does not depend on the number of
rows: maxima, sorts, log_softmax, sums of integers; a float sum over a single row, say, is split among threads and is
not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cloud_verifier.engines.base import Logprobs, Sampler
from cloud_verifier.engines.torch_engine.noise import RowNoise, gumbel
from speculation.noise import GUMBEL_MAX, GUMBEL_MIN
from speculation.sampling import SamplingParams

REACH = GUMBEL_MAX - GUMBEL_MIN  # a token this far below the best in log p cannot win, whatever the noise
NUCLEUS_FIRST = 256  # top-p looks at this many tokens before it sorts a whole vocabulary
FIXED_POINT = 2.0**52  # one, in top-p's sums
CPU_COUNTERS, GPU_COUNTERS = 1 << 14, 1 << 22  # Philox counters at a time: on a CPU, what stays in a core's cache


@dataclass(frozen=True)
class Row:
    """One position to choose a token for, and the tokens before it (only looked at if the penalties need them)."""

    sampler: Sampler
    position: int
    history: Sequence[int] = ()


def choose(logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
    """The target's token at each row. logits: [n, V], any float dtype, as the model gave them; left unchanged."""
    tokens = logits.argmax(-1)
    plain: list[int] = []  # sampled with nothing but a temperature: no need to normalise a whole vocabulary
    adjusted: list[int] = []
    for number, row in enumerate(rows):
        params = row.sampler.params
        if params.needs_history or params.logit_bias or not (params.greedy or _unfiltered(params)):
            adjusted.append(number)
        elif not params.greedy:
            plain.append(number)
    if plain:
        tokens[plain] = _choose_plain(logits if len(plain) == len(rows) else logits[plain], [rows[i] for i in plain])
    if adjusted:
        tokens[adjusted] = _choose_adjusted(logits[adjusted].double(), [rows[i] for i in adjusted])
    return [int(token) for token in tokens.tolist()]


def _unfiltered(params: SamplingParams) -> bool:
    return params.top_k == 0 and params.top_p == 1.0 and params.min_p == 0.0


def _noise(rows: Sequence[Row], device: torch.device) -> RowNoise:
    return RowNoise([row.sampler.seed for row in rows], [row.position for row in rows], device)


def _column(values: Sequence[float], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).to(device)[:, None]


def _choose_plain(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """argmax(logits / temperature + G), [n]."""
    temperatures = _column([row.sampler.params.temperature for row in rows], logits.device)
    exact = logits.float() if logits.dtype != torch.float64 else logits
    floor = exact.amax(-1, keepdim=True).double() - REACH * temperatures
    # Rounded down to the logits' own precision, so that comparing all of [n, V] needs no conversion.
    floor = torch.nextafter(floor.to(exact.dtype), exact.new_tensor(-math.inf))
    able = exact >= floor
    if _many(able):
        return choose_simply(exact, rows, temperatures)
    row_of, token_of = able.nonzero(as_tuple=True)
    scores = exact[row_of, token_of].double() / temperatures[row_of, 0]
    return _choose_among(row_of, token_of, scores, rows, logits.shape[1])


def _many(able: torch.Tensor) -> bool:
    """Whether noise for every token is less work than noise for these: four tokens share one evaluation of Philox."""
    return 4 * int(able.sum()) > able.numel()


def choose_simply(logits: torch.Tensor, rows: Sequence[Row], temperatures: torch.Tensor) -> torch.Tensor:
    """argmax(logits / temperature + G), [n], with noise for every token. temperatures: float64 [n, 1]."""
    counters = CPU_COUNTERS if logits.device.type == "cpu" else GPU_COUNTERS
    at_once = max(1, 4 * counters // logits.shape[1])
    parts = []
    for first in range(0, len(rows), at_once):
        last = first + at_once
        noise = gumbel(_noise(rows[first:last], logits.device).all_integers(logits.shape[1]))
        parts.append((logits[first:last].double() / temperatures[first:last] + noise).argmax(-1))
    return torch.cat(parts)


def _choose_among(
    row_of: torch.Tensor, token_of: torch.Tensor, scores: torch.Tensor, rows: Sequence[Row], size: int
) -> torch.Tensor:
    """The best token of each row, [n], with noise only for candidates: their rows, ids and scores, [m] each.

    Exact if the candidates are all tokens within REACH of the best: the others cannot win.
    """
    scores = scores + gumbel(_noise(rows, scores.device).integers(row_of, token_of))
    board = scores.new_full((len(rows), size), -math.inf)
    board[row_of, token_of] = scores
    return board.argmax(-1)


def _choose_adjusted(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """The choice under any parameters, [n]. logits: float64 [n, V], overwritten."""
    for number, row in enumerate(rows):
        penalise(logits[number], row)
    tokens = logits.argmax(-1)
    sampled = [i for i, row in enumerate(rows) if not row.sampler.params.greedy]
    if sampled:
        chosen = [rows[i] for i in sampled]
        log_probs = filtered(logits[sampled], [row.sampler.params for row in chosen])
        able = log_probs >= log_probs.amax(-1, keepdim=True) - REACH
        if _many(able):
            tokens[sampled] = choose_simply(log_probs, chosen, log_probs.new_ones(len(chosen), 1))
        else:
            row_of, token_of = able.nonzero(as_tuple=True)
            scores = log_probs[row_of, token_of]
            tokens[sampled] = _choose_among(row_of, token_of, scores, chosen, log_probs.shape[1])
    return tokens


def penalise(logits: torch.Tensor, row: Row) -> None:
    """`speculation.sampling.penalised`, in place on one row of float64 logits, shape [V]."""
    params, device = row.sampler.params, logits.device
    if params.needs_history:
        history = np.asarray(row.history, dtype=np.int64)
        if params.repetition_penalty != 1.0:
            seen = torch.from_numpy(np.unique(history)).to(device)
            old = logits[seen]
            logits[seen] = torch.where(old > 0, old / params.repetition_penalty, old * params.repetition_penalty)
        answer = history[row.sampler.prompt_length :]
        if len(answer) and (params.presence_penalty or params.frequency_penalty):
            tokens, counts = np.unique(answer, return_counts=True)
            penalty = params.presence_penalty + params.frequency_penalty * counts
            logits[torch.from_numpy(tokens).to(device)] -= torch.from_numpy(penalty).to(device)
    if params.logit_bias:
        tokens_ = torch.tensor(list(params.logit_bias), dtype=torch.int64).to(device)
        logits[tokens_] += torch.tensor(list(params.logit_bias.values()), dtype=torch.float64).to(device)


def filtered(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """`speculation.sampling.filtered` of n rows, [n, V] float64 each; all temperatures above zero."""
    device, size = logits.device, logits.shape[1]
    log_probs = torch.log_softmax(logits / _column([p.temperature for p in params], device), dim=-1)
    limited = [i for i, p in enumerate(params) if 0 < p.top_k < size]
    if limited:
        part = log_probs[limited]
        ks = torch.tensor([params[i].top_k for i in limited]).to(device)[:, None]
        edge = part.topk(int(ks.max()), dim=-1).values.gather(1, ks - 1)
        log_probs[limited] = part.masked_fill(part < edge, -math.inf)
    nuclear = [i for i, p in enumerate(params) if p.top_p < 1.0]
    if nuclear:
        log_probs[nuclear] = _nucleus(log_probs[nuclear], _column([params[i].top_p for i in nuclear], device))
    if any(p.min_p > 0.0 for p in params):
        floor = _column([math.log(p.min_p) if p.min_p > 0.0 else -math.inf for p in params], device)
        log_probs = log_probs.masked_fill(log_probs < log_probs.amax(-1, keepdim=True) + floor, -math.inf)
    return log_probs


def _nucleus(log_probs: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The likeliest tokens whose predecessors hold less than top_p ([n, 1]); the others get -inf."""
    size = log_probs.shape[1]
    probs = torch.softmax(log_probs, dim=-1)
    out = torch.empty_like(log_probs)
    left = torch.arange(len(log_probs), device=log_probs.device)
    for width in (NUCLEUS_FIRST, size) if size > 2 * NUCLEUS_FIRST else (size,):
        part = log_probs[left]
        ids = part.topk(width, dim=-1, sorted=False).indices.sort(dim=-1).values
        out[left], held = _keep(part, probs[left], ids, top_p[left])
        left = left[held < top_p[left, 0] * FIXED_POINT]
        if len(left) == 0:
            break
    return out


def _keep(
    log_probs: torch.Tensor, probs: torch.Tensor, ids: torch.Tensor, top_p: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep the nucleus among some of the likeliest tokens of each row (ids ascending, [n, m]), as if those were all.

    Also returns what is held before the first token that is as unlikely as the last of them, [n], in fixed point: if
    less than top_p, then others may belong to the nucleus too.
    """
    ordered, order = log_probs.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(1, order)
    # Integers, because the order of a float sum on a GPU depends on the number of rows.
    shares = (probs.gather(1, ids) * FIXED_POINT).round().long()
    before = shares.cumsum(-1) - shares
    kept = ordered.masked_fill(before >= top_p * FIXED_POINT, -math.inf)
    first_at_edge = (ordered == ordered[:, -1:]).int().argmax(-1, keepdim=True)
    return torch.full_like(log_probs, -math.inf).scatter(1, ids, kept), before.gather(1, first_at_edge)[:, 0]


def logprobs(logits: torch.Tensor, tokens: Sequence[int], top: int) -> list[Logprobs]:
    """The target's own log-probabilities, before temperature and filters: the chosen token's and the `top` best.

    logits: [n, V]. Equal ones are listed by id.
    """
    table = torch.log_softmax(logits.double(), dim=-1)
    found = []
    for row, token in zip(table, tokens, strict=True):
        ids: list[int] = []
        best: list[float] = []
        if top:
            able = (row >= row.topk(min(top, len(row))).values[-1]).nonzero()[:, 0]
            values, order = row[able].sort(descending=True, stable=True)
            ids, best = able[order][:top].tolist(), values[:top].tolist()
        found.append(Logprobs(float(row[token]), tuple(ids), tuple(best)))
    return found
