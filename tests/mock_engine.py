"""A target without a model: the next token is a hash of everything before it and of the seed.

Exact, instant, and as unforgiving as a real target: feed one wrong token and every later choice differs.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence

from cloud_verifier.engines.base import (
    Block,
    Choices,
    EngineFull,
    EngineInfo,
    Logprobs,
    SequenceId,
    TargetEngine,
)
from cloud_verifier.engines.branches import path_to, runs_of

VOCABULARY_SIZE = 64
EOS = 1


def next_token(tokens: Sequence[int], seed: int, eos_every: int = 0) -> int:
    """The mock target's choice after `tokens`; eos_every > 0 ends answers now and then."""
    digest = hashlib.blake2b(repr((list(tokens), seed)).encode(), digest_size=8).digest()
    value = int.from_bytes(digest, "little")
    if eos_every and value % eos_every == 0:
        return EOS
    return 2 + value % (VOCABULARY_SIZE - 2)


def answer(prompt: Sequence[int], seed: int, count: int) -> list[int]:
    """What the mock target writes alone."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens, seed))
    return tokens[len(prompt) :]


class MockEngine(TargetEngine):
    """Keeps real sequences, so that a wrong truncate or a wrong block shows in the words."""

    def __init__(
        self, max_sequences: int = 8, context_limit: int = 4096, eos_every: int = 0, *, trees: bool = True
    ) -> None:
        self.info = EngineInfo(
            "mock", "mock", VOCABULARY_SIZE, (EOS,), context_limit, max_sequences, True, "a mock is exact", trees
        )
        self.branches: dict[SequenceId, tuple[int, list[int]]] = {}  # length before the guesses, and the guesses
        self.eos_every = eos_every
        self.sequences: dict[SequenceId, list[int]] = {}
        self.poison: int | None = None
        self.batch_sizes: list[int] = []
        self._next = 0
        self._busy = threading.Lock()

    def open(self, tokens: Sequence[int] = (), scope: str = "") -> SequenceId:
        if len(self.sequences) >= self.info.max_sequences:
            raise EngineFull("the mock is full")
        assert len(tokens) <= self.info.context_limit
        assert isinstance(scope, str)
        self._next += 1
        sequence = SequenceId(self._next)
        self.sequences[sequence] = []
        return sequence

    def length(self, sequence: SequenceId) -> int:
        return len(self.sequences[sequence])

    def reserve(self, sequence: SequenceId, tokens: int, parents: Sequence[int] = ()) -> None:
        assert sequence in self.sequences
        assert tokens >= len(parents)

    def step(self, blocks: Sequence[Block]) -> list[Choices]:
        assert self._busy.acquire(blocking=False), "two callers at a time"
        try:
            if any(self.poison in block.tokens for block in blocks):
                raise RuntimeError("poisoned token")
            self.batch_sizes.append(len(blocks))
            return [self._evaluate(block) for block in blocks]
        finally:
            self._busy.release()

    def choice(self, tokens: Sequence[int], seed: int) -> int:
        """What it goes on with."""
        return next_token(tokens, seed, self.eos_every)

    def _evaluate(self, block: Block) -> Choices:
        tokens = self.sequences[block.sequence]
        chosen = []
        self.branches.pop(block.sequence, None)
        if block.parents:
            assert self.info.trees
            assert len(block.parents) == block.choices - 1
            count = len(block.parents)
            tokens += block.tokens[: len(block.tokens) - count]
            guesses = list(block.tokens[len(block.tokens) - count :])
            self.branches[block.sequence] = (len(tokens), guesses)
            chosen = [self.choice(tokens, block.sampler.seed)]
            for index in range(count):
                path = [guesses[guess] for guess in path_to(block.parents, index)]
                chosen.append(self.choice([*tokens, *path], block.sampler.seed))
            tokens += guesses[: runs_of(block.parents)[0].last]
            wanted = block.sampler.params.logprobs is not None
            return Choices(chosen, [Logprobs(-float(t), (), ()) for t in chosen] if wanted else ())
        for index, token in enumerate(block.tokens):
            tokens.append(token)
            if index >= len(block.tokens) - block.choices:
                chosen.append(self.choice(tokens, block.sampler.seed))
        wanted = block.sampler.params.logprobs is not None
        return Choices(chosen, [Logprobs(-float(t), (), ()) for t in chosen] if wanted else ())

    def keep(self, sequence: SequenceId, length: int, path: Sequence[int]) -> None:
        if sequence not in self.branches:
            super().keep(sequence, length, path)
            return
        before, guesses = self.branches.pop(sequence)
        assert before == length
        self.sequences[sequence][length:] = [guesses[guess] for guess in path]

    def truncate(self, sequence: SequenceId, length: int) -> None:
        tokens = self.sequences[sequence]
        assert 0 <= length <= len(tokens)
        del tokens[length:]

    def close(self, sequence: SequenceId) -> None:
        del self.sequences[sequence]
