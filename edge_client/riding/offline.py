"""Answers without the verifier: when the device may write alone, and what becomes of its words afterwards.

Nothing that the verifier said is ever rewritten. The device goes on from there with its drafter's own model; once the
verifier is back it can be asked to check those words, which it takes for what they are: drafts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from outrider.v1 import verifier_pb2 as pb

from edge_client.drafters.base import ANY_VOCABULARY, Candidates, Drafter, DrafterError, DrafterInfo
from edge_client.drafters.vocabulary.wrapper import NOTHING
from edge_client.types import OfflineAnswers, OfflinePart, Prompt, RequestOutput
from outrider_models.model_text import ModelText

UNREACHABLE = ("UNAVAILABLE", "DEADLINE_EXCEEDED")  # codes of a SessionError after which the device may go on

_SURE = -0.1  # log-probability of a word of the device's own: it is often right, as guesses go
Ask = Callable[[Callable[[], bool]], bool]


class TakeOver(Exception):
    """The device goes on alone: ends the ride."""


@dataclass(frozen=True)
class Consent:
    """Who says that the device may answer alone.

    ask: asks a person, on the session's thread, with a function that says whether the question still stands. It may
    take its time.
    """

    answers: OfflineAnswers = OfflineAnswers.NEVER
    ask: Ask | None = None

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if self.answers is OfflineAnswers.ASK and self.ask is None:
            raise ValueError("offline_answers is ask, so there must be somebody to ask: give ask_offline")

    def __call__(self, stands: Callable[[], bool]) -> bool:
        """Whether it may. stands: whether the verifier is still out of reach and the answer still wanted."""
        if self.answers is OfflineAnswers.ASK and self.ask is not None:
            return self.ask(stands)
        return self.answers is OfflineAnswers.AUTO


def own_tokens(
    prompt: Prompt, opened: pb.Opened | None, answer: Sequence[int], shown: str, model: Drafter, text: ModelText
) -> tuple[list[int], list[int], bool]:
    """Prompt and answer so far in the model's own tokens, and whether they are the log's.

    opened: None if the verifier was never reached. answer, shown: what it has said, as tokens and as text. A model
    with the target's vocabulary goes on from the log; any other one, and one that never saw the log, reads the text
    with its own tokenizer and chat template. Raises DrafterError.
    """
    if opened is not None and opened.model_info.vocabulary_fingerprint == model.info.vocabulary_fingerprint:
        if opened.prompt_ids:
            return list(opened.prompt_ids), list(answer), True
        if _is_ids(prompt):
            return list(prompt), list(answer), True  # type: ignore[arg-type]
    if isinstance(prompt, str):
        return text.encode_text(prompt), text.encode_more(shown), False
    if _is_ids(prompt):
        raise DrafterError("the prompt is token ids of the target's, which nobody here can read without it")
    return text.encode_chat(prompt), text.encode_more(shown), False  # type: ignore[arg-type]


def _is_ids(prompt: Prompt) -> bool:
    return not isinstance(prompt, str) and all(isinstance(item, int) for item in prompt)


@dataclass(frozen=True)
class CheckedAnswer:
    """What the verifier makes of an answer that the device finished alone.

    output: the verifier's whole answer; what it had said before stands. kept_tokens: so many of the device's own tokens
    it says, too; None if they are of another vocabulary. kept_text: their text. device_text, verifier_text: how each
    goes on from there; both empty if the device was right to the end.
    """

    output: RequestOutput
    kept_tokens: int | None
    kept_text: str
    device_text: str
    verifier_text: str

    @property
    def agrees(self) -> bool:
        """Whether the verifier says just what the device said."""
        return not self.device_text and not self.verifier_text


def compare(before: RequestOutput, checked: RequestOutput) -> CheckedAnswer:
    """before: an answer with an offline part. checked: the verifier's own, which begins with the committed part."""
    part = before.offline
    assert part is not None
    said = checked.text[len(before.committed_text) :]
    if part.of_log:
        new = checked.token_ids[len(before.token_ids) :]
        kept_tokens = agreed_length(part.token_ids, new)
        kept = "".join(part.texts[:kept_tokens]) if kept_tokens < len(part.token_ids) else part.text
        kept = said[: agreed_length(kept, said)]
        return CheckedAnswer(checked, kept_tokens, kept, part.text[len(kept) :], said[len(kept) :])
    kept = said[: agreed_length(part.text, said)]
    if kept != part.text or kept != said:
        kept = kept[: max(kept.rfind(" "), kept.rfind("\n")) + 1]  # half a word agrees by chance
    return CheckedAnswer(checked, None, kept, part.text[len(kept) :], said[len(kept) :])


def agreed_length(left: Sequence[object], right: Sequence[object]) -> int:
    """How many items they have in common from the beginning on."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


class ReplayDrafter(Drafter):
    """Guesses what the device wrote alone, in the target's ids, for as long as the log agrees with it.

    begins_at: position of the first of its tokens, asked for once there is a log.
    """

    def __init__(self, part: OfflinePart, begins_at: Callable[[], int]) -> None:
        self.info = DrafterInfo("the device's own words", 1 << 31, ANY_VOCABULARY, 1 << 31)
        self._own, self._begins_at = part.token_ids, begins_at
        self._tokens: list[int] = []

    @property
    def length(self) -> int:
        return len(self._tokens)

    def feed(self, tokens: Sequence[int]) -> None:
        self._tokens.extend(tokens)

    def candidates(self) -> Candidates:
        begins = self._begins_at()
        index = len(self._tokens) - begins
        if not 0 <= index < len(self._own) or tuple(self._tokens[begins:]) != self._own[:index]:
            return NOTHING
        return Candidates(np.array([self._own[index]]), np.array([_SURE]))

    def rollback(self, length: int) -> None:
        del self._tokens[length:]

    def close(self) -> None:
        pass
