"""The mock target behind the contract of engines that schedule by themselves."""

from __future__ import annotations

from collections.abc import Sequence

from cloud_verifier.engines.base import EngineFull, EngineInfo, Logprobs, Memory, Sampler, SequenceId
from cloud_verifier.engines.self_scheduling import SelfSchedulingEngine, Turn, Written
from tests.mock_engine import EOS, VOCABULARY_SIZE, next_token


class TurnMockEngine(SelfSchedulingEngine):
    """Reads prompts in chunks, and may guess by itself.

    room: sequences that go on in one step; the others of it get nothing. bonus: tokens that it writes beyond what it
    was given to check, whenever all of that was right.
    """

    most_guesses = 5
    preemptions = 0

    def __init__(self, chunk: int = 3, room: int = 64, bonus: int = 0, max_sequences: int = 8) -> None:
        self.info = EngineInfo("mock", "mock", VOCABULARY_SIZE, (EOS,), 4096, max_sequences, True, "a mock is exact")
        self.sequences: dict[SequenceId, list[int]] = {}
        self.samplers: dict[SequenceId, Sampler] = {}
        self.scopes: list[str] = []
        self.unread: dict[SequenceId, int] = {}
        self.turns: list[list[Turn]] = []
        self._chunk, self._room, self._bonus, self._next = chunk, room, bonus, 0

    @property
    def memory(self) -> Memory:
        return Memory()

    def open(self, tokens: Sequence[int], sampler: Sampler, scope: str = "") -> SequenceId:
        if len(self.sequences) >= self.info.max_sequences:
            raise EngineFull("the mock is full")
        self._next += 1
        sequence = SequenceId(self._next)
        self.sequences[sequence], self.samplers[sequence], self.unread[sequence] = list(tokens), sampler, len(tokens)
        self.scopes.append(scope)
        return sequence

    def step(self, turns: Sequence[Turn]) -> list[Written]:
        self.turns.append(list(turns))
        return [
            self._go_on(turn) if place < self._room else Written((), (), 0, 0, 0) for place, turn in enumerate(turns)
        ]

    def _go_on(self, turn: Turn) -> Written:
        assert len(turn.guesses) <= self.most_guesses
        tokens, sampler = self.sequences[turn.sequence], self.samplers[turn.sequence]
        read = min(self.unread[turn.sequence], self._chunk)
        self.unread[turn.sequence] -= read
        if self.unread[turn.sequence]:
            return Written((), (), 0, read, 0)
        written: list[int] = []
        more = self._bonus
        for place in range(len(turn.guesses) + 1 + self._bonus):
            chosen = next_token([*tokens, *written], sampler.seed)
            written.append(chosen)
            if place < len(turn.guesses) and chosen == turn.guesses[place]:
                continue
            if place < len(turn.guesses) or not more:
                break
            more -= 1
        tokens += written
        self.unread[turn.sequence] = 1
        logprobs = [Logprobs(-float(t), (), ()) for t in written] if sampler.params.logprobs is not None else []
        return Written(tuple(written), logprobs, len(turn.guesses), read + len(turn.guesses), 0)

    def close(self, sequence: SequenceId) -> None:
        del self.sequences[sequence], self.samplers[sequence], self.unread[sequence]
