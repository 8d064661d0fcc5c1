"""Which products a model's layers use on this machine: chosen by trying and by measuring, on weights of its own.

A kind is a candidate if it can be made here; the rows that agree bit by bit tell how many a forward must have; what
counts is the time of the rows that strict mode then runs. Two replicas on like machines must not choose differently
because one was busy: so a kind is only passed over for the next if it takes `CLEARLY` times as long.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from cloud_verifier.engines.torch_engine.products import KINDS, Product, Unpackable, linears
from cloud_verifier.engines.torch_engine.row_rules import CPU_RULES, MOST_ROWS, PLAIN_ROWS, SAFE_RULES, RowRule

_log = logging.getLogger(__name__)

SAMPLE_WEIGHTS = 10 << 20  # so many that they do not all stay in a cache
MOST_OF_ONE = 2 << 20  # of a large matrix, such as a head's
TRIED_ROWS = (*range(1, 34), 40, 48, 56, 63, 64, 100, 128, 257, MOST_ROWS)
LONE_ROWS = 16  # what other numbers of rows are compared with
TIMED_ROWS = (1, 4, 16)
ROUNDS = 5
CLEARLY = 1.5


@dataclass(frozen=True)
class Choice:
    """kind: a name in `KINDS`. rule: under which rows agree, as far as was tried."""

    kind: str
    rule: RowRule


@torch.inference_mode()
def choose(
    model: nn.Module,
    groups: Sequence[Sequence[nn.Linear]] = (),
    *,
    strict: bool,
    dtype: torch.dtype | None = None,
) -> Choice | None:
    """The products to use, None where there is nothing to choose: no CPU, no plain linear layers.

    groups: of layers that are to be one product each, see `Packing`. dtype: as if the model were in it.
    What counts is what a sample of the weights takes for 1, 4 and 16 rows together.
    """
    weights = _sample(model, groups)
    if not weights:
        return None
    weights = [weight.to(dtype or weight.dtype) for weight in weights]
    if weights[0].dtype not in (torch.float32, torch.bfloat16):
        return None
    candidates: list[tuple[str, RowRule, list[Product]]] = []
    for name, make in KINDS.items():
        try:
            products = [make(weight, None) for weight in weights]
            rule = _rule(name, products, weights) if strict else PLAIN_ROWS
        except (Unpackable, RuntimeError, AttributeError, NotImplementedError) as error:
            _log.debug("Products of the kind %s cannot be used: %s", name, error)
            continue
        candidates.append((name, rule, products))
    costs = _costs(candidates, weights)
    best = 0
    for number in range(1, len(candidates)):
        if costs[best] > CLEARLY * costs[number]:
            best = number
    _log.debug("Products: %s", ", ".join(f"{c[0]} {1e3 * t:.1f} ms" for c, t in zip(candidates, costs, strict=True)))
    return Choice(candidates[best][0], candidates[best][1])


def _sample(model: nn.Module, groups: Sequence[Sequence[nn.Linear]] = ()) -> list[torch.Tensor]:
    """Weights of all shapes that products of the model have, and some more of them."""
    grouped = {id(linear) for group in groups for linear in group}
    found = [linear.weight.detach() for _, _, linear in linears(model) if id(linear) not in grouped]
    forms = {tuple(linear.weight.shape for linear in group): group for group in groups}
    found += [torch.cat([linear.weight.detach() for linear in group]) for group in forms.values()]
    shapes = {weight.shape: weight for weight in found}
    sample = [weight[: max(1, MOST_OF_ONE // weight.shape[1])] for weight in shapes.values()]
    taken = sum(weight.numel() for weight in sample)
    for weight in found:
        if taken + weight.numel() <= SAMPLE_WEIGHTS and all(weight is not one for one in shapes.values()):
            sample.append(weight)
            taken += weight.numel()
    return [weight.contiguous() for weight in sample]


def _rule(name: str, products: list[Product], weights: list[torch.Tensor]) -> RowRule:
    """The cheapest rule under which a row's bits are the same for every number of rows that was tried."""
    if name == "plain":
        return SAFE_RULES[0]  # which kernel MKL takes depends on more than can be tried
    torch.manual_seed(13)
    differ: set[int] = set()
    by_shape = {weight.shape: (product, weight) for product, weight in zip(products, weights, strict=True)}
    for product, weight in by_shape.values():
        x = torch.randn(MOST_ROWS, weight.shape[1]).to(weight.dtype)
        few = torch.cat([product(part) for part in x.split(LONE_ROWS)])
        differ |= {rows for rows in TRIED_ROWS if not torch.equal(product(x[:rows].clone()), few[:rows])}
    fitting = (
        rule for rule in CPU_RULES if not any(rows % rule.multiple == 0 and rows <= rule.most for rows in differ)
    )
    return next(fitting, SAFE_RULES[-1])


def _costs(candidates: list[tuple[str, RowRule, list[Product]]], weights: list[torch.Tensor]) -> list[float]:
    """Seconds of each: the least of several rounds, taken in turns, so that all meet the same company."""
    inputs = {
        (rows, weight.shape[1]): torch.randn(rows, weight.shape[1]).to(weight.dtype)
        for weight in weights
        for _, rule, _ in candidates
        for rows in map(rule.padded, TIMED_ROWS)
    }
    best = [[float("inf")] * len(TIMED_ROWS) for _ in candidates]
    for _ in range(ROUNDS):
        for times, (_, rule, products) in zip(best, candidates, strict=True):
            for number, timed in enumerate(TIMED_ROWS):
                rows = rule.padded(timed)
                began = time.perf_counter()
                for product, weight in zip(products, weights, strict=True):
                    product(inputs[rows, weight.shape[1]])
                times[number] = min(times[number], time.perf_counter() - began)
    return [sum(times) for times in best]
