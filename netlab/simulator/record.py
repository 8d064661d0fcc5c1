"""Make a recording from real models, with the product's own engine, drafter and choice under shared noise.

The target answers alone. At every position of its answer the drafter, which has read everything before it, guesses:
what it would do on the path, whatever the pace.
"""

from __future__ import annotations

import json
import lzma
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud_verifier.engines.base import Block, Sampler, TargetEngine
from edge_client.drafters.base import Drafter
from netlab.simulator.recording import RecordedAnswer
from speculation.sampling import Guess, SamplingParams

if TYPE_CHECKING:
    from cloud_verifier.serving.codec import Codec  # it brings transformers along


CANDIDATES = 4  # of the drafter at a position, the likeliest first


class PromptsError(ValueError):
    """Prompts that cannot be read. The message names file, line and what was expected."""


@dataclass(frozen=True)
class RecordSettings:
    """What to record.

    tokens: of an answer, at most. count: of answers. seed: answer n is written under seed + n. stop_at_end: whether an
    answer ends where the target ends it; a small model's own answers are too short to race over.
    """

    tokens: int = 128
    count: int = 32
    temperature: float = 0.8
    seed: int = 1000
    stop_at_end: bool = False


def conversations(path: Path, seed: int) -> list[list[dict[str, str]]]:
    """Prompts of a file, shuffled by the seed.

    A .jsonl or .jsonl.xz file has objects with `messages` (a dialogue, which is cut before a random turn of the
    assistant's) or with `prompt`; any other file has a prompt per line. Raises PromptsError.
    """
    rng = random.Random(seed)
    name = path.name.removesuffix(".xz")
    try:
        with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as lines:
            rows = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    except (OSError, UnicodeDecodeError, lzma.LZMAError) as error:
        raise PromptsError(f"{path} cannot be read: {error}") from error
    if not rows:
        raise PromptsError(f"{path}, line 1: expected a prompt, found the end of the file")
    rng.shuffle(rows)
    if not name.endswith(".jsonl"):
        return [[{"role": "user", "content": line}] for _, line in rows]
    return [_conversation(line, rng, f"{path}, line {number}") for number, line in rows]


def _conversation(line: str, rng: random.Random, where: str) -> list[dict[str, str]]:
    try:
        value: Any = json.loads(line)
        if "prompt" in value:
            return [{"role": "user", "content": str(value["prompt"])}]
        messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in value["messages"]]
    except (ValueError, TypeError, KeyError):
        raise PromptsError(f'{where}: expected an object with "messages" or "prompt", found {line[:60]!r}') from None
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant" and index > 0]
    return messages[: rng.choice(turns)] if turns else messages


def record(
    engine: TargetEngine,
    codec: Codec,
    drafter: Drafter,
    prompts: Sequence[list[dict[str, str]]],
    settings: RecordSettings,
) -> Iterator[RecordedAnswer]:
    """One answer after the other, the prompts over and over if there are too few.

    A prompt that leaves no room for the answer loses its beginning. Raises TextError, DrafterError.
    """
    room = min(engine.info.context_limit, drafter.info.context_tokens) - settings.tokens
    for index in range(settings.count):
        prompt = codec.encode_chat(prompts[index % len(prompts)])[-room:]
        yield record_answer(engine, drafter, prompt, settings, settings.seed + index)


def record_answer(
    engine: TargetEngine, drafter: Drafter, prompt: Sequence[int], settings: RecordSettings, seed: int
) -> RecordedAnswer:
    """The target's answer to one prompt, and what the drafter guesses at each of its positions."""
    params = SamplingParams(temperature=settings.temperature)
    sampler, guess = Sampler(params, seed, len(prompt)), Guess(params, seed)
    drafter.rollback(0)
    hits: list[bool] = []
    ranks: list[int] = []
    confidences: list[list[float]] = []
    sequence = engine.open()
    try:
        pending = list(prompt)
        while len(hits) < settings.tokens:
            token = engine.step([Block(sequence, pending, 1, sampler)])[0].tokens[0]
            drafter.feed(pending)
            candidates = drafter.candidates()
            position = len(prompt) + len(hits)
            guessed, sure = guess.ranked(CANDIDATES, position, *candidates)
            hits.append(guessed[0] == token)
            ranks.append(guessed.index(token) if token in guessed else -1)
            confidences.append(sure)
            if settings.stop_at_end and token in engine.info.eos_ids:
                break
            pending = [token]
    finally:
        engine.close(sequence)
    first, others = [sure[0] for sure in confidences], [sure[1:] for sure in confidences]
    return RecordedAnswer(len(prompt), seed, hits, first, ranks, others)
