"""Answers that the device finished alone: whether it may, how they are marked, and how they are checked afterwards."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

from edge_client.assistant.errors import ApiError
from edge_client.assistant.requests import Question
from edge_client.riding.offline import CheckedAnswer
from edge_client.types import OfflineAnswers, RequestOutput

HEADER = "X-Outrider-Offline"
REMEMBERED = 32  # answers that can still be checked


def consent(question: Question, allowed: OfflineAnswers) -> OfflineAnswers:
    """Whether the device may finish this answer. A program is not asked: it says beforehand. Raises ApiError."""
    if question.offline is None:
        return OfflineAnswers.AUTO if allowed is OfflineAnswers.AUTO else OfflineAnswers.NEVER
    if question.offline is OfflineAnswers.AUTO and allowed is OfflineAnswers.NEVER:
        raise ApiError(
            422,
            "this server gives no answers of the device's own; start it with --offline-answers ask or auto",
            code="offline_not_allowed",
            param="outrider",
        )
    return question.offline


class Unchecked(NamedTuple):
    """An answer with an offline part, and what it answers."""

    question: Question
    choice: int
    output: RequestOutput


class OfflineAnswersGiven:
    """The latest of them, by the id of the answer and the number of its choice."""

    def __init__(self) -> None:
        self._given: OrderedDict[tuple[str, int], Unchecked] = OrderedDict()

    def remember(self, answer_id: str, question: Question, choice: int, output: RequestOutput) -> None:
        """If a part of it is the device's own."""
        if output.offline is None:
            return
        self._given[answer_id, choice] = Unchecked(question, choice, output)
        if len(self._given) > REMEMBERED:
            self._given.popitem(last=False)

    def find(self, body: object) -> Unchecked:
        """The answer that a request to check names. Raises ApiError."""
        answer_id = body.get("id") if isinstance(body, dict) else None
        choice = body.get("choice", 0) if isinstance(body, dict) else 0
        if not isinstance(answer_id, str) or not isinstance(choice, int):
            raise ApiError(400, "send the id of an answer, and the index of a choice", code="invalid_value", param="id")
        found = self._given.get((answer_id, choice))
        if found is None:
            sentence = f"no such answer waits to be checked; the last {REMEMBERED} with an offline part are remembered"
            raise ApiError(404, sentence, code="answer_not_found", param="id")
        return found


def told(checked: CheckedAnswer, before: RequestOutput) -> dict[str, Any]:
    """What a check found: the committed text, what of the device's words stands, and how each goes on from there."""
    return {
        "object": "outrider.check",
        "agrees": checked.agrees,
        "committed_text": before.committed_text,
        "kept_text": checked.kept_text,
        "kept_tokens": checked.kept_tokens,
        "device_text": checked.device_text,
        "verifier_text": checked.verifier_text,
        "text": checked.output.text,
    }
