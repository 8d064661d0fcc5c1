"""Whether words depend on company with llama.cpp: the self-test of all engines, and where keys and values lie."""

from __future__ import annotations

import random

import torch

from cloud_verifier.engines.base import Block, Sampler, SequenceId
from cloud_verifier.engines.llama_cpp.engine import LlamaCppEngine
from cloud_verifier.engines.self_test import StrictReport, self_test
from speculation.sampling import SamplingParams

_SAMPLER = Sampler(SamplingParams(temperature=0.0), seed=0, prompt_length=0)
_TURNS = 6
_TOKENS = 40
_ROWS = 1, 2, 3, 5, 8, 13, 32


def strictness(engine: LlamaCppEngine) -> StrictReport:
    """Test an engine that has no open sequences; leaves none open, and nothing of any."""
    if not _rows_agree(engine):
        return StrictReport(False, "Strict mode is not exact here: logits depend on the number of rows of a decode.")
    report = self_test(engine)
    if report.strict and engine.info.max_sequences > 1 and not _places_agree(engine):
        report = StrictReport(False, "Strict mode is not exact here: logits depend on where keys and values lie.")
    engine.forget()
    return report


def _rows_agree(engine: LlamaCppEngine) -> bool:
    """A first look that takes few tokens, for a rule that does not hold."""
    ids = random.Random(13)
    tokens = [ids.randrange(engine.info.vocabulary_size) for _ in range(min(_ROWS[-1], engine.info.context_limit))]
    sequence = engine.open()
    try:
        whole = _logits(engine, sequence, tokens)
        for rows in _ROWS[:-1]:
            engine.truncate(sequence, 0)
            if not torch.equal(_logits(engine, sequence, tokens[:rows]), whole[:rows]):
                return False
        return True
    finally:
        engine.close(sequence)
        engine.forget()


def _places_agree(engine: LlamaCppEngine) -> bool:
    """Whether a sequence whose cells lie among others', and are then laid anew, has the logits it has alone."""
    ids = random.Random(11)

    def some(count: int) -> list[int]:
        return [ids.randrange(engine.info.vocabulary_size) for _ in range(count)]

    tokens = some(min(_TOKENS, engine.info.context_limit))
    alone = _logits(engine, before := engine.open(scope="alone"), tokens)
    engine.close(before)
    sequence, other = engine.open(scope="one"), engine.open(scope="other")
    try:
        share = len(tokens) // _TURNS
        for turn in range(_TURNS):
            length, known = engine.length(sequence), engine.length(other)
            last = turn == _TURNS - 1
            own = tokens[length:] if last else [*tokens[length : length + share], *some(min(2, share))]
            company = some(min(3, engine.info.context_limit - known))
            blocks = [Block(sequence, own, len(own), _SAMPLER), Block(other, company, len(company), _SAMPLER)]
            first = turn % 2  # now the one takes the cells that come first, now the other
            got = engine.logits(blocks if first else blocks[::-1])[0 if first else 1]
            kept = len(own) if last else share
            if not torch.equal(got[:kept], alone[length : length + kept]):
                return False
            engine.truncate(sequence, length + kept)
            engine.truncate(other, known + 1)
            if turn % 2:
                engine.compact()
        return True
    finally:
        engine.close(sequence)
        engine.close(other)


def _logits(engine: LlamaCppEngine, sequence: SequenceId, tokens: list[int]) -> torch.Tensor:
    return engine.logits([Block(sequence, tokens, len(tokens), _SAMPLER)])[0]
