"""What our engine on vLLM adds to a step, beside plain vLLM stepping of the same model.

    python -m benchmarks.vllm_step MODEL [--dtype bfloat16] [--rounds 3]

vLLM serves one model in a process, so plain vLLM and ours run in processes of their own, in turns. Every session reads
a prompt of 32 random tokens and writes 48 tokens; a figure is the median of the steps after the prompts, of the rounds
the median again. Guesses are right, so a session that gets four of them writes five tokens in a step.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import click

SESSIONS = (1, 8, 32)
PROMPT_TOKENS, TOKENS, CONTEXT = 32, 48, 128
CACHE_GIB = 0.5


def _prompts(count: int, vocabulary_size: int) -> list[list[int]]:
    ids = random.Random(count)
    return [[ids.randrange(vocabulary_size) for _ in range(PROMPT_TOKENS)] for _ in range(count)]


def plain(model: str, dtype: str) -> Iterator[tuple[str, float]]:
    """Milliseconds per step of vLLM alone: its own scheduler and sampler, greedy, nothing speculated."""
    import os

    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    from vllm import SamplingParams
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor import Executor

    args = EngineArgs(
        model=model,
        dtype=dtype,
        max_num_seqs=max(SESSIONS),
        max_model_len=CONTEXT,
        enforce_eager=True,
        kv_cache_memory_bytes=int(CACHE_GIB * (1 << 30)),
    )
    config = args.create_engine_config()
    core = EngineCore(config, Executor.get_class(config), log_stats=False)
    number = 0
    for count in SESSIONS:
        for prompt in _prompts(count, config.model_config.get_vocab_size()):
            number += 1
            params = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
            request = EngineCoreRequest(str(number), prompt, None, params, None, time.time(), None, None, None)
            core.add_request(*core.preprocess_add_request(request))
        times = []
        while core.scheduler.has_requests():
            began = time.perf_counter()
            core.post_step(core.step_fn()[1])
            times.append(time.perf_counter() - began)
        yield f"{count} plain", statistics.median(times[1:]) * 1e3


def ours(model: str, dtype: str) -> Iterator[tuple[str, float]]:
    """Milliseconds per step of our engine: greedy and warm without guesses, warm with four right ones."""
    from cloud_verifier.engines.base import Sampler
    from cloud_verifier.engines.self_scheduling import Turn
    from cloud_verifier.engines.vllm.load import load
    from cloud_verifier.engines.vllm.options import VllmSettings
    from speculation.sampling import SamplingParams

    settings = VllmSettings(dtype=dtype, max_sequences=max(SESSIONS), context_limit=CONTEXT, kv_cache_gib=CACHE_GIB)
    engine = load(model, settings)
    click.echo(engine.info.strict_report, err=True)
    for count in SESSIONS:
        prompts = _prompts(count, engine.info.vocabulary_size)
        known: dict[int, list[int]] = {}
        for name, temperature, guesses in (("greedy", 0.0, 0), ("warm", 0.8, 0), ("warm, 4 guesses", 0.8, 4)):
            params = SamplingParams(temperature=temperature)
            opened = [engine.open(one, Sampler(params, seed, len(one)), name) for seed, one in enumerate(prompts)]
            said: dict[Any, list[int]] = {sequence: [] for sequence in opened}
            times = []
            while left := [sequence for sequence in opened if len(said[sequence]) < TOKENS]:
                turns = []
                for seed, sequence in enumerate(opened):
                    done = len(said[sequence])
                    if done < TOKENS:
                        turns.append(Turn(sequence, known[seed][done : done + guesses] if guesses and done else ()))
                began = time.perf_counter()
                results = engine.step(turns)
                times.append(time.perf_counter() - began)
                for sequence, result in zip(left, results, strict=True):
                    said[sequence] += result.tokens
            known = dict(enumerate(said.values()))
            for sequence in opened:
                engine.close(sequence)
            yield f"{count} {name}", statistics.median(times[1:]) * 1e3


@click.command()
@click.argument("model")
@click.option("--dtype", default="float32", show_default=True)
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--only", type=click.Choice(["plain", "ours"]), help="One of them, once, in this process.")
def main(model: str, dtype: str, rounds: int, only: str | None) -> None:
    """Milliseconds per step of plain vLLM and of our engine on it, in turns: medians and spread."""
    if only is not None:
        click.echo(json.dumps(dict((plain if only == "plain" else ours)(model, dtype))))
        return
    figures: dict[str, list[float]] = {}
    for _ in range(rounds):
        for one in ("plain", "ours"):
            command = [sys.executable, "-m", "benchmarks.vllm_step", model, "--dtype", dtype, "--only", one]
            told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            for name, value in json.loads(told.splitlines()[-1]).items():
                figures.setdefault(name, []).append(value)
    for name, values in sorted(figures.items(), key=lambda item: int(item[0].split()[0])):
        click.echo(f"{name:20} {statistics.median(values):7.2f} ms per step ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
