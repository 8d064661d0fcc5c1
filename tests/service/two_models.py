"""A verifier of two models with different vocabularies, one of which is the drafter's; the other has its letters
under other numbers. One drafter can be right for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cloud_verifier.engines.base import Block, Choices, Logprobs
from cloud_verifier.serving.open_request import Served
from speculation.vocabulary.vocabulary import Vocabulary
from tests.harness import InProcessVerifier, LetterCodec, LetterStream, MockDrafter
from tests.mock_engine import next_token
from tests.service.engines import GatedEngine
from tests.speaking import LETTERS, SpeakingDrafter

REVERSED = Vocabulary(("<begin>", "<end>", *reversed(LetterCodec.LETTERS)), LETTERS.special)


def reversed_ids(tokens: Sequence[int]) -> list[int]:
    """Ids of one model as the other's, which is its own inverse."""
    return [65 - token if token >= 2 else token for token in tokens]


class OwnCodec(LetterCodec):
    """Of the first model: its vocabulary is the drafter's."""

    vocabulary = LETTERS
    fingerprint = LETTERS.fingerprint


class ReversedCodec(LetterCodec):
    """Of the other one."""

    LETTERS = LetterCodec.LETTERS[::-1]
    vocabulary = REVERSED
    fingerprint = REVERSED.fingerprint

    def stream(self, before: Sequence[int] = ()) -> LetterStream:
        return ReversedStream()


class ReversedStream(LetterStream):
    def push(self, token: int) -> str:
        return ReversedCodec().text([token])


class ReversedEngine(GatedEngine):
    """Writes what the first model would, in its own ids."""

    def _evaluate(self, block: Block) -> Choices:
        tokens = self.sequences[block.sequence]
        chosen = []
        for index, token in enumerate(block.tokens):
            tokens.append(token)
            if index >= len(block.tokens) - block.choices:
                chosen += reversed_ids([next_token(reversed_ids(tokens), block.sampler.seed)])
        wanted = block.sampler.params.logprobs is not None
        return Choices(chosen, [Logprobs(-float(t), (), ()) for t in chosen] if wanted else ())


class TwoModels(InProcessVerifier):
    """`mock` and `other`; both step when allowed."""

    def __init__(self, **settings: Any) -> None:
        self.own, self.other = GatedEngine(), ReversedEngine()
        super().__init__(self.own, OwnCodec(), **settings)
        self.other.info = replace(self.other.info, fingerprint="fingerprint of the other")
        codec: Any = ReversedCodec()
        self._watched["others"] = [(self.other, Served("other", self.other.info, codec))]

    def allow(self, steps: int = 10_000) -> None:
        self.own.allow(steps)
        self.other.allow(steps)


class LettersDrafter(SpeakingDrafter):
    """Tells its vocabulary, so that it can be matched with the other model's."""

    def __init__(self, target_seed: int) -> None:
        MockDrafter.__init__(self, 3, target_seed, 1.0)
        self._wrong_at = -1
        self.info = replace(self.info, vocabulary_fingerprint=LETTERS.fingerprint)

    def vocabulary(self) -> Vocabulary:
        return LETTERS
