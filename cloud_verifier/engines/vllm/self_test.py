"""Whether words depend on company with vLLM: tried before it serves anybody, by what it says in the end.

vLLM's logits stay in its workers. So tokens are compared, and bit by bit the log-probabilities of the best 20 at every
position: float64 of all logits there, which differ if a logit does.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator, Sequence

from cloud_verifier.engines.base import Logprobs, Sampler, SequenceId
from cloud_verifier.engines.self_scheduling import SelfSchedulingEngine, Turn
from cloud_verifier.engines.self_test import StrictReport
from speculation.sampling import MAX_LOGPROBS, SamplingParams

LENGTHS = (3, 130, 17, 62)  # of prompts
LONG_TOKENS = 600
TOKENS = 13
WIDTHS = (1, 4, 12)  # right guesses in each step
SAMPLER = Sampler(SamplingParams(temperature=0.8, logprobs=MAX_LOGPROBS), seed=20240607, prompt_length=0)

Said = list[tuple[int, Logprobs]]


def self_test(engine: SelfSchedulingEngine) -> StrictReport:
    """Test an engine that has no open sequences; leaves none open. Takes about 170 steps.

    Every answer is written alone and without guesses, which is what all else is compared with: with right guesses and
    with wrong ones, in company, and read again from somewhere in its middle. A long prompt is read at once and in two
    steps.
    """
    longest = engine.info.context_limit - TOKENS - 1
    lengths = [min(length, longest) for length in LENGTHS[: engine.info.max_sequences]]
    if fault := next(_faults(engine, lengths), None):
        return StrictReport(False, f"Strict mode is not exact here: {fault}.")
    return StrictReport(
        True,
        f"Strict mode is exact here: {len(lengths)} sequences of up to {max(lengths)} tokens, together and alone, with "
        f"up to {max(WIDTHS)} guesses and with none, and read again from their middle, and a prompt of "
        f"{_long_tokens(engine)} tokens read at once and in two steps, gave the same tokens and log-probabilities bit "
        "by bit.",
    )


def _faults(engine: SelfSchedulingEngine, lengths: Sequence[int]) -> Iterator[str]:
    """What differs, in words, cheapest first."""
    ids, vocabulary = random.Random(7), engine.info.vocabulary_size
    prompts = [[ids.randrange(vocabulary) for _ in range(length)] for length in lengths]

    def together(prompts: Sequence[Sequence[int]], tokens: int, answers: Sequence[Said], width: int) -> list[Said]:
        scope = secrets.token_hex()  # nothing is shared with what was tried before
        return _written(engine, prompts, tokens, answers, width, scope)

    def one_by_one(prompts: Sequence[Sequence[int]], tokens: int, answers: Sequence[Said], width: int) -> list[Said]:
        pairs = zip(prompts, answers, strict=True)
        return [said for prompt, answer in pairs for said in together([prompt], tokens, [answer], width)]

    nothing: list[Said] = [[] for _ in prompts]
    alone = one_by_one(prompts, TOKENS, nothing, 0)
    for width in reversed(WIDTHS):
        if one_by_one(prompts, TOKENS, alone, width) != alone:
            yield f"{width + 1} rows of a sequence differ from one"
    wrong = [[((token + 1) % vocabulary, logprobs) for token, logprobs in answer] for answer in alone]
    if together(prompts, TOKENS, alone, 3) != alone or together(prompts, TOKENS, wrong, 3) != alone:
        yield "sequences in company and with guesses differ from those alone and without"
    if together(prompts, TOKENS, nothing, 0) != alone:
        yield "sequences in company differ from those alone"
    half = TOKENS // 2
    longer = [[*p, *(token for token, _ in a[:half])] for p, a in zip(prompts, alone, strict=True)]
    if one_by_one(longer, TOKENS - half, nothing, 0) != [answer[half:] for answer in alone]:
        yield "a log that is read at once differs from one that was written"
    long = [ids.randrange(vocabulary) for _ in range(_long_tokens(engine))]
    at_once = together([long], half, nothing[:1], 0)
    scope = secrets.token_hex()
    _written(engine, [long[: len(long) // 2]], 1, nothing[:1], 0, scope)  # which is found there by the next
    if _written(engine, [long], half, nothing[:1], 0, scope) != at_once:
        yield f"{len(long)} tokens read in one step differ from the same in two"


def _long_tokens(engine: SelfSchedulingEngine) -> int:
    return min(LONG_TOKENS, engine.info.context_limit - TOKENS)


def _written(
    engine: SelfSchedulingEngine,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    answers: Sequence[Said],
    width: int,
    scope: str,
) -> list[Said]:
    """What the engine says after these prompts, all at once. width: how many of `answers` are guessed in a step."""
    opened = [engine.open(prompt, SAMPLER, scope) for prompt in prompts]
    said: dict[SequenceId, Said] = {sequence: [] for sequence in opened}
    guesses, width = dict(zip(opened, answers, strict=True)), min(width, engine.most_guesses)
    try:
        while left := [sequence for sequence in opened if len(said[sequence]) < tokens]:
            turns = []
            for sequence in left:
                done = len(said[sequence])
                ahead = guesses[sequence][done : min(done + width, tokens - 1)] if done else []
                turns.append(Turn(sequence, [token for token, _ in ahead]))
            for sequence, result in zip(left, engine.step(turns), strict=True):
                said[sequence] += zip(result.tokens, result.logprobs, strict=True)
        return list(said.values())
    finally:
        for sequence in opened:
            engine.close(sequence)
