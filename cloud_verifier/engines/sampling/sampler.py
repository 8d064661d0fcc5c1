"""The torch twin of `speculation.sampling`: the target's choice at many rows of logits at once.

A row's choice depends on that row alone. So every reduction here is one whose order does not depend on the number of
rows: maxima, sorts, log_softmax, sums of integers; a float sum over a single row, say, is split among threads and is
not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch

from cloud_verifier.engines.base import Logprobs, Sampler
from cloud_verifier.engines.sampling.noise import RowNoise, gumbel
from cloud_verifier.engines.sampling.penalties import Past, penalise
from cloud_verifier.engines.sampling.upload import upload
from speculation.noise import GUMBEL_MAX, GUMBEL_MIN
from speculation.sampling import SamplingParams

REACH = GUMBEL_MAX - GUMBEL_MIN  # a token this far below the best in log p cannot win, whatever the noise
NUCLEUS_FIRST, NUCLEUS_SECOND = 256, 8192  # top-p looks at so many tokens before it sorts a whole vocabulary
FIXED_POINT = 2.0**52  # one, in top-p's sums
# Logits at a time where several tensors of float64 are made of them: 16 MiB each, on a GPU 256.
CPU_LOGITS, GPU_LOGITS = 1 << 21, 1 << 25
CPU_COUNTERS, GPU_COUNTERS = 1 << 14, 1 << 22  # Philox counters at a time: on a CPU, what stays in a core's cache


class Row(NamedTuple):
    """One position to choose a token for.

    past: the tokens before it, the same object for all rows of a block; None if no penalty needs them. plain: it is
    drawn with nothing but a temperature.
    """

    sampler: Sampler
    position: int
    past: Past | None
    plain: bool


def rows_of(sampler: Sampler, positions: Sequence[int], past: Past | Sequence[int] = ()) -> list[Row]:
    """The rows at consecutive positions of a sequence. past: its tokens, counted or not, if the penalties need them."""
    params = sampler.params
    unfiltered = params.top_k == 0 and params.top_p == 1.0 and params.min_p == 0.0
    plain = unfiltered and not (params.greedy or params.needs_history or params.logit_bias)
    counted = None
    if params.needs_history and positions:
        counted = past if isinstance(past, Past) else Past.of(past, positions[0], sampler.prompt_length)
    return [Row(sampler, position, counted, plain) for position in positions]


def choose(logits: torch.Tensor, rows: Sequence[Row], drawn: torch.Tensor | None = None) -> list[int]:
    """The target's token at each row. logits: [n, V], any float dtype, as the model gave them; left unchanged.

    drawn: what `draw` chose already, [n], right where nothing but a temperature counts; overwritten elsewhere. On a GPU
    the host waits once: for the result.
    """
    tokens = logits.argmax(-1) if drawn is None else drawn
    plain: list[int] = []  # sampled with nothing but a temperature: no need to normalise a whole vocabulary
    adjusted: list[int] = []
    for number, row in enumerate(rows):
        if row.plain:
            plain.append(number)
            continue
        params = row.sampler.params
        if params.needs_history or params.logit_bias or not params.greedy:
            adjusted.append(number)
    for part in _parts(plain if drawn is None else [], logits):
        index = upload(part, torch.int64, logits.device)
        tokens[index] = _choose_plain(logits if len(part) == len(rows) else logits[index], [rows[i] for i in part])
    for part in _parts(adjusted, logits):
        index = upload(part, torch.int64, logits.device)
        tokens[index] = _choose_adjusted(logits[index].double(), [rows[i] for i in part])
    return [int(token) for token in tokens.tolist()]


def _parts(numbers: Sequence[int], logits: torch.Tensor) -> Iterator[Sequence[int]]:
    """Numbers of rows, so many at a time as may be worked on at once: a long step needs no more memory than a short."""
    at_once = max(1, (CPU_LOGITS if logits.device.type == "cpu" else GPU_LOGITS) // logits.shape[1])
    return (numbers[first : first + at_once] for first in range(0, len(numbers), at_once))


def draw(
    logits: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor, temperatures: torch.Tensor
) -> torch.Tensor:
    """argmax(logits / temperature + G), or the argmax where the temperature is 0; [n].

    All [n] and on the device: seeds and positions int64, temperatures float64. Nothing here depends on a number that
    the host would have to wait for, so it can be part of a captured graph.
    """
    warm = temperatures > 0
    scale = torch.where(warm, temperatures, 1.0)[:, None]
    at_once = max(1, 4 * GPU_COUNTERS // logits.shape[1])
    parts = []
    for first in range(0, len(logits), at_once):
        rows = slice(first, first + at_once)
        noise = gumbel(RowNoise.on_device(seeds[rows], positions[rows]).all_integers(logits.shape[1]))
        parts.append((logits[rows].double() / scale[rows] + noise).argmax(-1))
    return torch.where(warm, torch.cat(parts), logits.argmax(-1))


def _noise(rows: Sequence[Row], device: torch.device) -> RowNoise:
    return RowNoise([row.sampler.seed for row in rows], [row.position for row in rows], device)


def _column(values: Sequence[float], device: torch.device) -> torch.Tensor:
    return upload(values, torch.float64, device)[:, None]


def _choose_plain(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """argmax(logits / temperature + G), [n]."""
    temperatures = _column([row.sampler.params.temperature for row in rows], logits.device)
    exact = logits.float() if logits.dtype != torch.float64 else logits
    if exact.device.type != "cpu":
        return choose_simply(exact, rows, temperatures)
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
    """Whether noise for every token is less work than noise for these: four tokens share one evaluation of Philox.

    Always on a GPU, where to count them would be to wait for them.
    """
    return able.device.type != "cpu" or 4 * int(able.sum()) > able.numel()


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
    adjust(logits, rows)
    tokens = logits.argmax(-1)
    warm = [i for i, row in enumerate(rows) if not row.sampler.params.greedy]
    if warm:
        chosen, sampled = [rows[i] for i in warm], upload(warm, torch.int64, logits.device)
        log_probs = filtered(logits[sampled], [row.sampler.params for row in chosen])
        able = log_probs >= log_probs.amax(-1, keepdim=True) - REACH
        if _many(able):
            tokens[sampled] = choose_simply(log_probs, chosen, log_probs.new_ones(len(chosen), 1))
        else:
            row_of, token_of = able.nonzero(as_tuple=True)
            scores = log_probs[row_of, token_of]
            tokens[sampled] = _choose_among(row_of, token_of, scores, chosen, log_probs.shape[1])
    return tokens


def adjust(logits: torch.Tensor, rows: Sequence[Row]) -> None:
    """`speculation.sampling.penalised` of each row, in place on float64 logits, [n, V]."""
    first = 0
    for _, group in groupby(rows, key=lambda row: (id(row.sampler), id(row.past))):
        block = list(group)
        part = logits[first : first + len(block)]
        first += len(block)
        params, past = block[0].sampler.params, block[0].past
        if past is not None:
            penalise(part, params, past, [row.position for row in block])
        if params.logit_bias:
            biased = upload(list(params.logit_bias), torch.int64, logits.device)
            part[:, biased] += upload(list(params.logit_bias.values()), torch.float64, logits.device)


def filtered(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """`speculation.sampling.filtered` of n rows, [n, V] float64 each; all temperatures above zero."""
    device, size = logits.device, logits.shape[1]
    log_probs = torch.log_softmax(logits / _column([p.temperature for p in params], device), dim=-1)
    limited = [i for i, p in enumerate(params) if 0 < p.top_k < size]
    if limited:
        index, counts = upload(limited, torch.int64, device), [params[i].top_k for i in limited]
        part = log_probs[index]
        edge = part.topk(max(counts), dim=-1).values.gather(1, upload(counts, torch.int64, device)[:, None] - 1)
        log_probs[index] = part.masked_fill(part < edge, -math.inf)
    nuclear = [i for i, p in enumerate(params) if p.top_p < 1.0]
    if nuclear:
        index = upload(nuclear, torch.int64, device)
        log_probs[index] = _nucleus(log_probs[index], _column([params[i].top_p for i in nuclear], device))
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
    # On a GPU all at once: to know what the first turn has left would be to wait for it.
    few = (NUCLEUS_FIRST, NUCLEUS_SECOND) if left.device.type == "cpu" else ()
    for width in (*(width for width in few if 2 * width < size), size):
        part = log_probs[left]
        if width < size:
            ids = part.topk(width, dim=-1, sorted=False).indices.sort(dim=-1).values
        else:
            ids = torch.arange(size, device=left.device).expand(len(part), -1)
        out[left], held = _keep(part, probs[left], ids, top_p[left])
        if width == size:
            break
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
    found: list[Logprobs] = []
    for part in _parts(range(len(tokens)), logits):
        table = torch.log_softmax(logits[part[0] : part[-1] + 1].double(), dim=-1)
        chosen = upload([tokens[i] for i in part], torch.int64, logits.device)[:, None]
        own = table.gather(1, chosen)[:, 0].tolist()
        best: list[list[tuple[float, int]]] = [[] for _ in part]
        if top:
            edge = table.topk(min(top, table.shape[1]), dim=-1).values[:, -1:]
            row_of, token_of = (table >= edge).nonzero(
                as_tuple=True
            )  # more than `top` where some tie for the last place
            for row, token, value in zip(
                *(t.tolist() for t in (row_of, token_of, table[row_of, token_of])), strict=True
            ):
                best[row].append((-value, token))
        for logprob, candidates in zip(own, best, strict=True):
            listed = sorted(candidates)[:top]
            found.append(Logprobs(logprob, tuple(t for _, t in listed), tuple(-value for value, _ in listed)))
    return found
