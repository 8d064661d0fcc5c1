"""The target of a load trial: writes down what a real target wrote before, and takes as long as the profile says.

It keeps real sequences and compares every token it is fed, so a wrong truncation or a wrong block shows in the words.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.load.answers import Written
from benchmarks.load.profile import MemoryBound
from cloud_verifier.engines.base import Block, Choices, EngineFull, EngineInfo, SequenceId, TargetEngine

STRAY = 1  # what the target writes after anything that is none of its own texts


@dataclass
class Work:
    """What the engine did. slept_s: time that it stood for a GPU; late_s: by which steps took longer than they should;
    cpu_s: of its thread."""

    steps: int = 0
    blocks: int = 0
    positions: int = 0
    slept_s: float = 0.0
    late_s: float = 0.0
    cpu_s: float = 0.0


@dataclass
class _Sequence:
    """prompt: as far as it was read. text: what the sequence should read, empty until then. right: how far it does."""

    length: int = 0
    right: int = 0
    prompt: list[int] = field(default_factory=list)
    text: Sequence[int] = ()


class WrittenTarget(TargetEngine):
    """See the module's text. An answer is known by its prompt."""

    def __init__(
        self,
        written: Sequence[Written],
        profile: MemoryBound,
        *,
        slow_motion: float = 1.0,
        vocabulary_size: int,
        max_sequences: int,
    ) -> None:
        """slow_motion: how many times as long as the profile's a step takes. Raises ValueError if two answers have the
        same prompt, or an id is outside the vocabulary."""
        self._texts = {tuple(one.prompt): [*one.prompt, *one.tokens] for one in written}
        if len(self._texts) < len(written):
            raise ValueError("two answers have the same prompt; the target could not tell them apart")
        if max(max(text) for text in self._texts.values()) + 1 >= vocabulary_size:
            raise ValueError(f"ids of answers, and the next above each, must be below {vocabulary_size}")
        self._profile, self._slow_motion = profile, slow_motion
        self._sequences: dict[SequenceId, _Sequence] = {}
        self._opened = 0
        self.work = Work()
        self.info = EngineInfo(
            name="written",
            fingerprint="written",
            vocabulary_size=vocabulary_size,
            eos_ids=(),
            context_limit=4096,
            max_sequences=max_sequences,
            strict=True,
            strict_report="recorded answers, emulated steps",
        )

    def open(self, tokens: Sequence[int] = (), scope: str = "") -> SequenceId:
        if len(self._sequences) >= self.info.max_sequences:
            raise EngineFull(f"all {self.info.max_sequences} sequences are taken")
        self._opened += 1
        self._sequences[SequenceId(self._opened)] = _Sequence()
        return SequenceId(self._opened)

    def length(self, sequence: SequenceId) -> int:
        return self._sequences[sequence].length

    def reserve(self, sequence: SequenceId, tokens: int, parents: Sequence[int] = ()) -> None:
        """There is room for every sequence that is open, as `max_sequences` says."""

    def step(self, blocks: Sequence[Block]) -> list[Choices]:
        began_s, cpu_began_s = time.perf_counter(), time.thread_time()
        choices = [self._evaluate(block) for block in blocks]
        positions = sum(len(block.tokens) for block in blocks)
        wanted_s = self._profile(len(blocks), positions) * self._slow_motion / 1e3
        left_s = wanted_s - (time.perf_counter() - began_s)
        if left_s > 0:
            time.sleep(left_s)
        work = self.work
        work.steps += 1
        work.blocks += len(blocks)
        work.positions += positions
        work.slept_s += wanted_s
        work.late_s += time.perf_counter() - began_s - wanted_s
        work.cpu_s += time.thread_time() - cpu_began_s
        return choices

    def _evaluate(self, block: Block) -> Choices:
        sequence = self._sequences[block.sequence]
        missing = block.sampler.prompt_length - len(sequence.prompt)
        if missing > 0:  # it may be read over several steps
            sequence.prompt += block.tokens[:missing]
            if len(sequence.prompt) == block.sampler.prompt_length:
                sequence.text = self._texts.get(tuple(sequence.prompt), ())
                sequence.right = sequence.length
        text = sequence.text
        chosen: list[int] = []
        first = len(block.tokens) - block.choices
        for index, token in enumerate(block.tokens):
            if sequence.right == sequence.length < len(text) and text[sequence.length] == token:
                sequence.right += 1
            sequence.length += 1
            if index >= first:
                on_path = sequence.right == sequence.length < len(text)
                chosen.append(text[sequence.length] if on_path else STRAY)
        return Choices(chosen)

    def truncate(self, sequence: SequenceId, length: int) -> None:
        kept = self._sequences[sequence]
        if not 0 <= length <= kept.length:
            raise ValueError(f"a sequence of {kept.length} tokens cannot be cut to {length}")
        kept.length, kept.right = length, min(kept.right, length)

    def close(self, sequence: SequenceId) -> None:
        del self._sequences[sequence]
