"""The start-up self-test of strict mode: does this model, on this machine, say the same words in any company?

Random ids of the model's vocabulary are evaluated in company and alone, in blocks and token by token, in one long chunk
and in short ones, and the logits are compared bit by bit. If they agree, a session that is resumed from its log by one
prefill goes on exactly as if it had decoded token by token.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from cloud_verifier.engines.base import Block, EngineFull, Sampler, SequenceId
from cloud_verifier.engines.branches import path_to
from cloud_verifier.engines.paged import PagedEngine
from cloud_verifier.engines.pages import PAGE_TOKENS
from speculation.sampling import SamplingParams

LONG_TOKENS = 448
LENGTHS = (3, 17, 62, 65, 126, 31)  # before the blocks: on both sides of a multiple of 64
BLOCKS = (5, 1, 8, 3, 6, 2)
CHUNKS = (1, 2, 5, 8, 7, 13, 3, 40, 17, 96)
QUICK_LENGTHS = (62, 9)  # of the quick check: a page ends within the first block
QUICK_BLOCKS = (4, 1)
TWIGS = (-1, 0, 1, 2, 3, 1, 5, 6, -1, 8, 5, 10, 11)  # parents: a trunk of five, three twigs, one of them off another

_SAMPLER = Sampler(SamplingParams(temperature=0.8), seed=20240607, prompt_length=0)


@dataclass(frozen=True)
class StrictReport:
    """strict: everything agreed. sentence: what was found, for people."""

    strict: bool
    sentence: str


def self_test(engine: PagedEngine, sizes: Sequence[int] = ()) -> StrictReport:
    """Test an engine that has no open sequences; leaves none open. Takes about as long as 1,500 tokens of prefill.

    sizes: numbers of rows of a forward that are to give the same bits, each tried; with these, as many tokens more as
    their sum.
    """
    ids = random.Random(7)
    vocabulary, limit = engine.info.vocabulary_size, engine.info.context_limit
    count = _fitting(engine)
    prompts = [[ids.randrange(vocabulary) for _ in range(min(n, limit - 8))] for n in LENGTHS[:count]]
    blocks = [[ids.randrange(vocabulary) for _ in range(n)] for n in BLOCKS[:count]]
    long = [ids.randrange(vocabulary) for _ in range(min(max(LONG_TOKENS, *sizes, 0), limit))]

    opened = [engine.open() for _ in range(count)]
    try:
        faults = _company_and_blocks(engine, opened, prompts, blocks)
        for sequence in opened:
            engine.truncate(sequence, 0)
        if not _chunks_agree(engine, opened[0], long):
            faults.append(f"one chunk of {len(long)} tokens differs from the same tokens in short chunks")
        if differing := _sizes_that_differ(engine, opened[0], long, sizes):
            faults.append(f"forwards of {', '.join(map(str, differing))} rows differ from one of {len(long)}")
    finally:
        for sequence in opened:
            engine.close(sequence)
    if faults:
        sentence = f"Strict mode is not exact here: {'; '.join(faults)}."
        return StrictReport(False, sentence)
    return StrictReport(
        True,
        f"Strict mode is exact here: {count} sequences together and alone, blocks of up to {max(BLOCKS)} and single "
        f"tokens, {len(long)} tokens in one chunk and in short ones gave the same logits bit by bit.",
    )


def quick_check(engine: PagedEngine) -> str:
    """A digest of the logits of a few steps; empty if company changes them. About as long as 100 tokens of prefill.

    For an engine of which the whole test has passed before: it tells whether this is the one that was tested. It has no
    open sequences; none is left open.
    """
    ids = random.Random(5)
    lengths = QUICK_LENGTHS[: _fitting(engine)]
    opened: list[SequenceId] = []
    try:
        opened = [engine.open() for _ in lengths]
        prompts = [[ids.randrange(engine.info.vocabulary_size) for _ in range(length)] for length in lengths]
        prompts = [prompt[: engine.info.context_limit - 2 * max(QUICK_BLOCKS)] for prompt in prompts]
        blocks = [[ids.randrange(engine.info.vocabulary_size) for _ in range(n)] for n in QUICK_BLOCKS[: len(lengths)]]
        if _company_and_blocks(engine, opened, prompts, blocks):
            return ""
        whole = hashlib.sha256()
        for sequence, block in zip(opened, blocks, strict=True):
            logits = engine.logits([_block(sequence, block, len(block))])[0]
            whole.update(logits.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return whole.hexdigest()
    finally:
        for sequence in opened:
            engine.close(sequence)
        engine.forget()


def branches_agree(engine: PagedEngine) -> bool:
    """Whether guesses that branch give the bits that each of their paths gives alone, kept or not.

    They part before, at and after the end of a page, one twig off another. Leaves no sequence open. An engine that is
    not strict is not compared; one without room for the trial has none for branches.
    """
    ids, vocabulary = random.Random(11), engine.info.vocabulary_size
    if engine.info.context_limit < 2 * PAGE_TOKENS or engine.info.max_sequences < 1:
        return False
    sequence = engine.open()
    leaves = [guess for guess in range(len(TWIGS)) if guess not in TWIGS]
    try:
        for length in (PAGE_TOKENS - 4, PAGE_TOKENS - 1):
            prompt, guesses = ([ids.randrange(vocabulary) for _ in range(count)] for count in (length, len(TWIGS)))
            pending, following = prompt[-1], ids.randrange(vocabulary)
            engine.truncate(sequence, 0)
            engine.logits([_block(sequence, prompt[:-1], 0)])
            block = Block(sequence, [pending, *guesses], len(guesses) + 1, _SAMPLER, TWIGS)
            together = engine.logits([block])[0]
            for leaf in leaves:
                path = path_to(TWIGS, leaf)
                tokens = [pending, *(guesses[guess] for guess in path), following]
                engine.truncate(sequence, length - 1)
                alone = engine.logits([_block(sequence, tokens, len(tokens))])[0]
                engine.truncate(sequence, length - 1)
                engine.logits([block])
                engine.keep(sequence, length, path)
                kept = engine.logits([_block(sequence, [following], 1)])[0]
                same = torch.equal(alone[:-1], together[[0, *(guess + 1 for guess in path)]])
                if engine.info.strict and not (same and torch.equal(alone[-1:], kept)):
                    return False
        return True
    except EngineFull:
        return False
    finally:
        engine.close(sequence)


def _fitting(engine: PagedEngine) -> int:
    """How many of the sequences an engine has places and memory for."""
    needed = list(accumulate(-(-(length + max(BLOCKS)) // PAGE_TOKENS) for length in LENGTHS))
    fitting = sum(pages <= engine.memory.free for pages in needed)
    return min(fitting, engine.info.max_sequences)


def _company_and_blocks(
    engine: PagedEngine, opened: list[SequenceId], prompts: list[list[int]], blocks: list[list[int]]
) -> list[str]:
    """What differs, in words: blocks in company, alone, token by token; logits and sampled choices."""
    engine.logits([_block(sequence, prompt, 0) for sequence, prompt in zip(opened, prompts, strict=True)])
    step = [_block(sequence, block, len(block)) for sequence, block in zip(opened, blocks, strict=True)]

    def back() -> None:
        for sequence, prompt in zip(opened, prompts, strict=True):
            engine.truncate(sequence, len(prompt))

    together = engine.logits(step)
    back()
    chosen = [list(choices.tokens) for choices in engine.step(step)]
    back()
    alone = [engine.logits([one])[0] for one in step]
    back()
    chosen_alone = [list(engine.step([one])[0].tokens) for one in step]
    back()
    singly = [
        torch.cat([engine.logits([_block(sequence, [token], 1)])[0] for token in block])
        for sequence, block in zip(opened, blocks, strict=True)
    ]
    faults = []
    if not _equal(together, alone):
        faults.append("logits in company differ from logits alone")
    if chosen != chosen_alone:
        faults.append("choices in company differ from choices alone")
    if not _equal(alone, singly):
        faults.append("logits of a block differ from logits token by token")
    return faults


def _chunks_agree(engine: PagedEngine, sequence: SequenceId, tokens: list[int]) -> bool:
    whole = engine.logits([_block(sequence, tokens, len(tokens))])[0]
    engine.truncate(sequence, 0)
    engine.forget()  # so that every page is computed anew
    done, turn = 0, 0
    while done < len(tokens):
        chunk = tokens[done : done + CHUNKS[turn % len(CHUNKS)]]
        if not torch.equal(engine.logits([_block(sequence, chunk, len(chunk))])[0], whole[done : done + len(chunk)]):
            return False
        done, turn = done + len(chunk), turn + 1
    return True


def _sizes_that_differ(engine: PagedEngine, sequence: SequenceId, tokens: list[int], sizes: Sequence[int]) -> list[int]:
    def chunk(count: int) -> torch.Tensor:
        engine.truncate(sequence, 0)
        engine.forget()
        return engine.logits([_block(sequence, tokens[:count], count)])[0]

    if not sizes:
        return []
    whole = chunk(len(tokens))
    return [size for size in sizes if not torch.equal(chunk(size), whole[:size])]


def _block(sequence: SequenceId, tokens: list[int], choices: int) -> Block:
    return Block(sequence, tokens, choices, _SAMPLER)


def _equal(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))
