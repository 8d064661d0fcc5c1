"""The demo target's own answers, written by the torch engine: real ids for the trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from benchmarks.load.answers import MOST_TOKENS, Written
from netlab.experiments.rig import DEMO
from netlab.prompts import openings
from netlab.simulator.pair import MARGIN_TOKENS
from speculation.sampling import SamplingParams

TEMPERATURE, SEED = 0.8, 1000


def record(count: int, done: Callable[[int], None]) -> Sequence[Written]:
    """So many answers, all in one batch; `done` is told how many tokens of each there are."""
    from cloud_verifier.engines.base import Block, Sampler
    from cloud_verifier.engines.torch_engine import load
    from cloud_verifier.serving.codec import Codec

    codec = Codec(str(DEMO / "target"))
    engine = load(str(DEMO / "target"), strict=False, max_sequences=count)
    params = SamplingParams(temperature=TEMPERATURE)
    answers = []
    for number, opening in enumerate(openings(count)):
        # With a number of its own, so that no two prompts are the same.
        prompt = codec.encode_chat([{"role": "user", "content": f"{opening} ({number + 1})"}])
        answers.append(Written(prompt, []))
    samplers = [Sampler(params, SEED + number, len(one.prompt)) for number, one in enumerate(answers)]
    sequences = [engine.open() for _ in answers]
    pending: list[Sequence[int]] = [one.prompt for one in answers]
    reach = MOST_TOKENS + MARGIN_TOKENS
    for length in range(1, reach + 1):
        blocks = [Block(s, tokens, 1, sampler) for s, tokens, sampler in zip(sequences, pending, samplers, strict=True)]
        pending = [choices.tokens for choices in engine.step(blocks)]
        answers = [replace(one, tokens=[*one.tokens, *tokens]) for one, tokens in zip(answers, pending, strict=True)]
        done(length)
    return answers
