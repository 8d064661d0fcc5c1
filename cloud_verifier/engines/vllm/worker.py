"""What runs in each of vLLM's workers: our choice of tokens instead of vLLM's, and company for lone rows.

vLLM mixes the class that `worker_extension_cls` names into its worker, in every process, so its methods can be called
by `collective_rpc`. The sampler of a request travels in the `extra_args` of its sampling parameters; vLLM itself takes
all requests for greedy ones, and its samplers are not called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from vllm.v1.outputs import LogprobsTensors, SamplerOutput

from cloud_verifier.engines.base import Logprobs, Sampler
from cloud_verifier.engines.sampling.penalties import TokenCounts
from cloud_verifier.engines.sampling.sampler import Row, choose, logprobs, rows_of
from cloud_verifier.engines.vllm.options import SAMPLER
from speculation.acceptance import shared_noise

NONE = -1  # in vLLM's tables of tokens


class SharedNoiseWorker:
    """Mixed into vLLM's worker."""

    model_runner: Any

    def outrider_choose(self) -> None:
        """From here on tokens are chosen under shared noise."""
        self.model_runner._sample = _Choosing(self.model_runner)

    def outrider_accompany(self, on: bool) -> int:
        """Whether every matrix product of one row is one of two. Returns how many layers that concerns."""
        layers = [layer for layer in self.model_runner.get_model().modules() if hasattr(layer, "weight")]
        methods = {id(method): method for layer in layers if hasattr(method := _method(layer), "apply")}
        for method in methods.values():
            vars(method).pop("apply", None)  # which leaves the class's own
            if on:
                method.apply = _accompanied(method.apply)
        return len(methods)


def _method(layer: Any) -> Any:
    """How a layer of vLLM multiplies, if it is one that does."""
    return getattr(layer, "quant_method", None)


def _accompanied(apply: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def accompanied(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if x.dim() != 2 or x.shape[0] != 1:
            return apply(layer, x, *args, **kwargs)
        return apply(layer, x.expand(2, -1).contiguous(), *args, **kwargs)[:1]

    return accompanied


class _Choosing:
    """In place of `GPUModelRunner._sample`: the target's own choices, and guesses as long as they are equal to them."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._counts: dict[str, TokenCounts] = {}  # of requests whose penalties need them

    def __call__(self, logits: torch.Tensor, metadata: Any) -> SamplerOutput:
        """logits: [rows, V]; of each request as many rows as it has guesses, and one more, in the batch's order."""
        batch = self._runner.input_batch
        counts = [0] * batch.num_reqs if metadata is None else list(metadata.num_draft_tokens)
        flat = [] if metadata is None else metadata.draft_token_ids.tolist()
        ends = [sum(counts[: number + 1]) for number in range(len(counts))]
        guesses = [flat[end - count : end] for end, count in zip(ends, counts, strict=True)]
        samplers = [self._sampler(request_id) for request_id in batch.req_ids]
        rows = [self._rows(number, *pair) for number, pair in enumerate(zip(samplers, guesses, strict=True))]
        choices = choose(logits, [row for part in rows for row in part])
        table = torch.full((len(counts), max(counts) + 1), NONE, dtype=torch.int32)
        told: list[list[Logprobs]] = []
        first = 0
        for number, (sampler, own) in enumerate(zip(samplers, guesses, strict=True)):
            chosen = choices[first : first + len(own) + 1]
            kept = chosen[: len(shared_noise(own, chosen)) + 1]
            table[number, : len(kept)] = torch.tensor(kept, dtype=torch.int32)
            top = sampler.params.logprobs
            told.append([] if top is None else logprobs(logits[first : first + len(kept)], kept, top))
            first += len(own) + 1
        return SamplerOutput(table.to(logits.device), _packed(told, table.shape[1]))

    def _sampler(self, request_id: str) -> Sampler:
        found: Sampler = self._runner.requests[request_id].sampling_params.extra_args[SAMPLER]
        return found

    def _rows(self, number: int, sampler: Sampler, guesses: Sequence[int]) -> list[Row]:
        batch = self._runner.input_batch
        length = int(batch.num_tokens_no_spec[number])
        positions = range(length, length + len(guesses) + 1)
        if not sampler.params.needs_history:
            return rows_of(sampler, positions)
        counts = self._counted(batch.req_ids[number], sampler)
        counts.extend(batch.token_ids_cpu[number, counts.length : length])
        return rows_of(sampler, positions, counts.past((), guesses))

    def _counted(self, request_id: str, sampler: Sampler) -> TokenCounts:
        if request_id not in self._counts:
            living = self._runner.requests
            self._counts = {other: counts for other, counts in self._counts.items() if other in living}
            self._counts[request_id] = TokenCounts(self._runner.input_batch.vocab_size, sampler.prompt_length)
        return self._counts[request_id]


def _packed(told: Sequence[Sequence[Logprobs]], width: int) -> LogprobsTensors | None:
    """As vLLM carries them: a row for every place of its table of tokens, the chosen token's first, then the best."""
    most = max((len(one.top_ids) for part in told for one in part), default=-1)
    if most < 0:
        return None
    ids = torch.zeros(len(told), width, most + 1, dtype=torch.int64)
    values = torch.zeros(len(told), width, most + 1, dtype=torch.float64)
    for number, part in enumerate(told):
        for place, one in enumerate(part):
            values[number, place, 0] = one.logprob
            count = len(one.top_ids)
            ids[number, place, 1 : count + 1] = torch.tensor(one.top_ids, dtype=torch.int64)
            values[number, place, 1 : count + 1] = torch.tensor(one.top_logprobs, dtype=torch.float64)
    ranks = torch.zeros(len(told) * width, dtype=torch.int64)
    return LogprobsTensors(ids.flatten(0, 1), values.flatten(0, 1), ranks)
