"""The target that writes down recorded answers: it must notice whatever a verifier does wrong."""

import pytest

from benchmarks.load.answers import described
from benchmarks.load.profile import MemoryBound
from benchmarks.load.target import STRAY, WrittenTarget
from cloud_verifier.engines.base import Block, EngineFull, Sampler
from speculation.sampling import SamplingParams

QUICK = MemoryBound(0.0, 1e-6, 0.0)
WRITTEN = described(2)


def target(max_sequences: int = 2) -> WrittenTarget:
    return WrittenTarget(WRITTEN, QUICK, vocabulary_size=4096, max_sequences=max_sequences)


def test_it_writes_its_answer_and_nothing_after_a_wrong_token() -> None:
    engine, text = target(), WRITTEN[1]
    sampler = Sampler(SamplingParams(), 0, len(text.prompt))
    sequence = engine.open()
    assert engine.step([Block(sequence, text.prompt, 1, sampler)])[0].tokens == [text.tokens[0]]
    block = Block(sequence, [text.tokens[0], text.tokens[1], text.tokens[2] + 1, text.tokens[3]], 4, sampler)
    assert engine.step([block])[0].tokens == [text.tokens[1], text.tokens[2], STRAY, STRAY]
    engine.truncate(sequence, len(text.prompt) + 2)
    assert engine.step([Block(sequence, [text.tokens[2]], 1, sampler)])[0].tokens == [text.tokens[3]]
    assert engine.work.steps == 3
    assert engine.work.positions == len(text.prompt) + 5


def test_a_prompt_may_be_read_in_pieces() -> None:
    engine, text = target(), WRITTEN[1]
    sampler = Sampler(SamplingParams(), 0, len(text.prompt))
    sequence = engine.open()
    engine.step([Block(sequence, text.prompt[:5], 0, sampler)])
    assert engine.step([Block(sequence, text.prompt[5:], 1, sampler)])[0].tokens == [text.tokens[0]]


def test_a_truncation_one_token_short_shows_in_the_words() -> None:
    engine, text = target(), WRITTEN[0]
    sampler = Sampler(SamplingParams(), 0, len(text.prompt))
    sequence = engine.open()
    engine.step([Block(sequence, [*text.prompt, text.tokens[0], text.tokens[1] + 1], 1, sampler)])
    assert engine.step([Block(sequence, [text.tokens[2]], 1, sampler)])[0].tokens == [STRAY]


def test_limits() -> None:
    engine = target(max_sequences=1)
    engine.open()
    with pytest.raises(EngineFull, match="all 1 sequences"):
        engine.open()
    with pytest.raises(ValueError, match="same prompt"):
        WrittenTarget([WRITTEN[0], WRITTEN[0]], QUICK, vocabulary_size=4096, max_sequences=1)
    with pytest.raises(ValueError, match="below 64"):
        WrittenTarget(WRITTEN, QUICK, vocabulary_size=64, max_sequences=1)


def test_positions_are_free_until_they_take_longer_than_the_weights() -> None:
    profile = MemoryBound(20.0, 0.2, 0.5)
    assert profile.free_positions == 100
    assert profile(1, 1) == profile(1, 100) == 20.5
    assert profile(4, 200) == 42.0
