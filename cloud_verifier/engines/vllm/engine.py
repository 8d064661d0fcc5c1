"""`VllmEngine`: an `EngineCore` of vLLM in this process, stepped by the thread that steps every engine of ours.

A sequence is one of vLLM's requests; its log is vLLM's. Guesses reach vLLM by `TurnScheduler`, tokens are chosen by
`SharedNoiseWorker`.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from vllm import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core import EngineCore

from cloud_verifier.engines.base import EngineDead, EngineFull, EngineInfo, Logprobs, Memory, Sampler, SequenceId
from cloud_verifier.engines.self_scheduling import SelfSchedulingEngine, Turn, Written
from cloud_verifier.engines.vllm.options import MOST_GUESSES, SAMPLER
from cloud_verifier.engines.vllm.scheduler import Part, TurnScheduler

NOTHING = Part(0, 0)


class NoProposer:
    """vLLM checks guesses only if somebody in it may make some. This one makes none."""

    def __init__(self, config: Any) -> None:
        pass

    def load_model(self, *_: Any, **__: Any) -> None:
        """It has none."""

    def propose(self, sampled_token_ids: Sequence[Any], *_: Any, **__: Any) -> list[list[int]]:
        """For each request of a batch."""
        return [[] for _ in sampled_token_ids]


class VllmEngine(SelfSchedulingEngine):
    """`load` makes one and tries it."""

    most_guesses = MOST_GUESSES

    def __init__(self, core: EngineCore, info: EngineInfo, enter_thread: Callable[[], None]) -> None:
        """core: with `TurnScheduler` and `SharedNoiseWorker`; the engine shuts it down.

        enter_thread: called on every thread that is to step, before it does.
        """
        self.info = info
        self._enter_thread, self._thread = enter_thread, 0
        self._core = core
        self._scheduler: TurnScheduler = core.scheduler
        self._samplers: dict[SequenceId, Sampler] = {}  # of open sequences
        self._opened = 0
        core.check_for_draft_tokens = False  # nobody in vLLM has any, and to ask costs a call of every worker
        core.collective_rpc("outrider_choose")
        weakref.finalize(self, core.shutdown)

    def describe(self, **changes: object) -> None:
        """Replace fields of `info`, for what is known only after trying (strictness)."""
        self.info = replace(self.info, **changes)  # type: ignore[arg-type]

    def accompany(self, *, on: bool) -> int:
        """Whether a lone row has company in every matrix product. Returns how many layers that concerns."""
        return int(min(self._core.collective_rpc("outrider_accompany", args=(on,))))

    @property
    def preemptions(self) -> int:
        return self._scheduler.preemptions

    @property
    def memory(self) -> Memory:
        pool = self._scheduler.kv_cache_manager.block_pool
        free = pool.get_num_free_blocks()  # those of closed sequences that are kept are among them
        used = pool.num_gpu_blocks - 1 - free  # one is nobody's
        return Memory(used, 0, free, self._scheduler.prefix_query_tokens, self._scheduler.prefix_hit_tokens)

    def open(self, tokens: Sequence[int], sampler: Sampler, scope: str = "") -> SequenceId:
        if len(self._samplers) >= self.info.max_sequences:
            raise EngineFull(
                f"all {self.info.max_sequences} sequences of the engine are open; close one or raise max_sequences"
            )
        self._opened += 1
        sequence = SequenceId(self._opened)
        params = SamplingParams(
            temperature=0.0,
            max_tokens=self.info.context_limit,
            ignore_eos=True,
            detokenize=False,
            logprobs=sampler.params.logprobs,
            extra_args={SAMPLER: _picklable(sampler)},
        )
        request, wave = self._core.preprocess_add_request(
            EngineCoreRequest(
                request_id=str(sequence),
                prompt_token_ids=list(tokens),
                mm_features=None,
                sampling_params=params,
                pooling_params=None,
                arrival_time=time.time(),
                lora_request=None,
                cache_salt=scope or None,
                data_parallel_rank=None,
            )
        )
        self._core.add_request(request, wave)
        self._samplers[sequence] = sampler
        return sequence

    def step(self, turns: Sequence[Turn]) -> list[Written]:
        self._check(turns)
        if self._thread != (thread := threading.get_ident()):
            self._enter_thread()
            self._thread = thread
        self._scheduler.take({str(turn.sequence): turn.guesses for turn in turns})
        try:
            outputs, executed = self._core.step_fn()
            self._core.post_step(executed)
        except Exception as error:  # its scheduler, its workers and we may disagree from here on
            raise EngineDead(f"vLLM failed in a step: {type(error).__name__}: {error}") from error
        said = {one.request_id: one for group in (outputs or {}).values() for one in group.outputs}
        return [self._written(turn.sequence, said.get(str(turn.sequence))) for turn in turns]

    def close(self, sequence: SequenceId) -> None:
        self._find(sequence)
        del self._samplers[sequence]
        self._core.abort_requests([str(sequence)])
        self._scheduler.forget(str(sequence))

    def _find(self, sequence: SequenceId) -> Sampler:
        try:
            return self._samplers[sequence]
        except KeyError:
            raise ValueError(f"sequence {sequence} is not open") from None

    def _check(self, turns: Sequence[Turn]) -> None:
        seen = set()
        for turn in turns:
            self._find(turn.sequence)
            if turn.sequence in seen:
                raise ValueError(f"sequence {turn.sequence} is named twice in one step")
            seen.add(turn.sequence)
            if len(turn.guesses) > self.most_guesses:
                raise ValueError(f"{len(turn.guesses)} guesses for a sequence; there may be {self.most_guesses}")
            if turn.guesses and not 0 <= min(turn.guesses) <= max(turn.guesses) < self.info.vocabulary_size:
                raise ValueError(f"sequence {turn.sequence} has a guess outside 0..{self.info.vocabulary_size - 1}")

    def _written(self, sequence: SequenceId, output: Any) -> Written:
        part = self._scheduler.parts.get(str(sequence), NOTHING)
        found = self._scheduler.found.get(str(sequence), 0)
        if output is None:
            return Written((), (), part.checked, part.positions, found)
        tokens = tuple(output.new_token_ids)
        wanted: list[Logprobs] = []
        if (top := self._samplers[sequence].params.logprobs) is not None:
            top = min(top, self.info.vocabulary_size)  # others of the step may want more
            wanted = [_logprobs(output.new_logprobs, row, top) for row in range(len(tokens))]
        return Written(tokens, wanted, part.checked, part.positions, found)


def _picklable(sampler: Sampler) -> Sampler:
    """For workers in other processes."""
    return replace(sampler, params=replace(sampler.params, logit_bias=dict(sampler.params.logit_bias)))


def _logprobs(lists: Any, row: int, top: int) -> Logprobs:
    values = lists.logprobs[row].tolist()
    return Logprobs(values[0], tuple(lists.logprob_token_ids[row, 1 : top + 1].tolist()), tuple(values[1 : top + 1]))
