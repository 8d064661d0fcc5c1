"""What a verifier does by itself: a few answers without drafts, which every drafter is then held against.

The words of an answer do not depend on who drafts, so one set of answers tells for any number of drafters how many of
its tokens they would have guessed. The verifier is asked only once.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from edge_client.client import EdgeClient
from edge_client.drafters.base import ANY_VOCABULARY, Candidates, Drafter, DrafterInfo
from edge_client.errors import SessionError
from edge_client.link.reachability import round_trip_ms
from edge_client.link.security import Security
from edge_client.riding.vocabulary_cache import VocabularyError
from edge_client.types import Prompt, RequestOutput
from speculation.sampling import SamplingParams
from speculation.vocabulary.vocabulary import Vocabulary

TEMPERATURE = 0.8  # as chats have it
ANSWER_TOKENS = 48
ENOUGH_TOKENS = 128  # of all answers; where they are short, the questions are asked once more
MOST_ROUNDS = 2
HEARD_S = 5.0
_TEXT = (
    "The library opens at nine in the morning and closes at six in the evening. On Saturdays it closes at noon. Books "
    "can be kept for three weeks. Whoever needs a book for longer may ask at the desk or on the telephone."
)
# Answers of several kinds; one repeats its prompt, as summaries and edits do, and is what lookups are good at.
QUESTIONS: tuple[str, ...] = (
    "Hello",
    "Explain in a few sentences why the sky is blue.",
    f"Repeat this text, but write Sundays instead of Saturdays: {_TEXT}",
    "I need a place to stay in Cambridge for two nights. What would you recommend?",
)
_REFUSED = ("INVALID_ARGUMENT", "UNIMPLEMENTED")  # a target without a chat template, or without these letters


@dataclass(frozen=True)
class Answer:
    """log: prompt and answer, in ids of the target."""

    log: tuple[int, ...]
    prompt_tokens: int
    seed: int = 1

    @property
    def prompt(self) -> tuple[int, ...]:
        """What was asked."""
        return self.log[: self.prompt_tokens]

    @property
    def words(self) -> tuple[int, ...]:
        """What was answered."""
        return self.log[self.prompt_tokens :]


@dataclass(frozen=True)
class Reference:
    """rtt_ms: the least of a few round trips. step_ms: per token of plain streaming. vocabulary: the target's tokens;
    None if the verifier does not tell them."""

    model: str
    vocabulary_fingerprint: str
    vocabulary_size: int
    rtt_ms: float
    step_ms: float
    answers: tuple[Answer, ...]
    vocabulary: Vocabulary | None


def take_reference(
    verifier: str, model: str, security: Security, told: Callable[[int, int], None] = lambda _done, _of: None
) -> Reference:
    """Ask the verifier. told: hears how many of how many tokens have come.

    Raises SessionError if it refuses or cannot be reached, and ValueError as `EdgeClient`.
    """
    listener = Listener()
    with EdgeClient(verifier, listener, model=model, pace="streaming", security=security) as client:
        info = client.model_info(timeout_s=5.0)
        rtt_ms = round_trip_ms(client.model_info)
        answers: list[Answer] = []
        step_ms: list[float] = []
        for seed in range(1, MOST_ROUNDS + 1):
            for question in QUESTIONS:
                tokens = sum(len(answer.words) for answer in answers)
                told(min(tokens, ENOUGH_TOKENS), ENOUGH_TOKENS)
                if tokens < ENOUGH_TOKENS and (output := _ask(client, question, seed)) is not None:
                    answers += listener.heard(output)
                    step_ms += [output.metrics.ms_per_token] if len(output.token_ids) > 1 else []
        if not step_ms:
            raise SessionError("INTERNAL", "NO_ANSWER", "the verifier gave no answer of more than one token")
        try:
            vocabulary = client.vocabulary()
        except (SessionError, VocabularyError):
            vocabulary = None
    return Reference(
        model=info.model,
        vocabulary_fingerprint=info.vocabulary_fingerprint,
        vocabulary_size=info.vocabulary_size,
        rtt_ms=rtt_ms,
        step_ms=statistics.median(step_ms),
        answers=tuple(answers),
        vocabulary=vocabulary,
    )


class Listener(Drafter):
    """Guesses nothing and keeps the logs it hears: a drafter is told the log when an answer is complete."""

    def __init__(self) -> None:
        self.info = DrafterInfo("listener", 0, ANY_VOCABULARY, 1 << 20)
        self._logs: SimpleQueue[tuple[tuple[int, ...], int]] = SimpleQueue()
        self._length = 0

    def heard(self, output: RequestOutput) -> list[Answer]:
        """The answer with its prompt. The drafting thread tells it, some time after the output has come; none, if it
        does not."""
        with contextlib.suppress(Empty):
            while True:
                log, prompt_tokens = self._logs.get(timeout=HEARD_S)
                if log[prompt_tokens:] == output.token_ids:
                    return [Answer(log, prompt_tokens, output.seed)]
        return []

    @property
    def length(self) -> int:
        return self._length

    def feed(self, tokens: Sequence[int]) -> None:
        self._length += len(tokens)

    def candidates(self) -> Candidates:
        return Candidates(np.empty(0, np.int64), np.empty(0, np.float64))

    def rollback(self, length: int) -> None:
        self._length = length

    def learn(self, log: Sequence[int], prompt_tokens: int) -> None:
        if len(log) > prompt_tokens:
            self._logs.put((tuple(log), prompt_tokens))

    def close(self) -> None:
        pass


def _ask(client: EdgeClient, question: str, seed: int) -> RequestOutput | None:
    """None if the target takes no such question, or says nothing."""
    params = SamplingParams(temperature=TEMPERATURE, max_tokens=ANSWER_TOKENS)
    for prompt in _ways_to_ask(question):
        try:
            output = client.generate(prompt, params, seed=seed)
        except SessionError as error:
            if error.code not in _REFUSED:
                raise
            continue
        return output if output.token_ids else None
    return None


def _ways_to_ask(question: str) -> Iterator[Prompt]:
    yield [{"role": "user", "content": question}]
    yield question


def as_json(reference: Reference) -> dict[str, Any]:
    """For another process; `from_json` reads it."""
    vocabulary = reference.vocabulary
    return {
        **{name: value for name, value in vars(reference).items() if name not in ("answers", "vocabulary")},
        "answers": [vars(answer) for answer in reference.answers],
        "vocabulary": vocabulary
        and {
            "strings": vocabulary.strings,
            "special": sorted(vocabulary.special),
            "added": sorted(vocabulary.added),
        },
    }


def from_json(content: dict[str, Any]) -> Reference:
    """What `as_json` made."""
    told = content["vocabulary"]
    return Reference(
        **{
            **content,
            "answers": tuple(Answer(**{**answer, "log": tuple(answer["log"])}) for answer in content["answers"]),
            "vocabulary": told
            and Vocabulary(tuple(told["strings"]), frozenset(told["special"]), added=frozenset(told["added"])),
        }
    )
