"""Recorded pairs: what a real drafter would have guessed at every position of a real target's answers.

A recording is a file of JSON lines. The first is its head:

    {"format": "outrider-recording", "version": 1, "target": ..., "drafter": ..., "temperature": 0.8, ...}

and each further line is an answer: its prompt's length, its seed, its hits as a string of 1 (right) and 0, and the
drafter's confidences, in thousandths:

    {"prompt_tokens": 31, "seed": 1000, "hits": "1101...", "confidences": [991, 874, 302, 765, ...]}

Hits hold given a right prefix; see `pair`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netlab.simulator.pair import RecordedPair

FORMAT, VERSION = "outrider-recording", 1
THOUSANDTHS = 1000


class RecordingError(ValueError):
    """A recording that cannot be used. The message names file, line and what was expected."""


@dataclass(frozen=True)
class RecordedAnswer:
    """hits[i], confidences[i]: of the guess at answer position i."""

    prompt_tokens: int
    seed: int
    hits: Sequence[bool]
    confidences: Sequence[float]


@dataclass(frozen=True)
class Recording:
    """Answers, and in `head` where they come from (target, drafter, temperature, date, ...)."""

    answers: Sequence[RecordedAnswer]
    head: dict[str, Any] = field(default_factory=dict)

    def pair(self, name: str) -> RecordedPair:
        """For the simulator."""
        return RecordedPair([a.hits for a in self.answers], [a.confidences for a in self.answers], name)


def write(recording: Recording, path: Path) -> None:
    """Write a recording. Raises OSError."""
    lines = [json.dumps({"format": FORMAT, "version": VERSION} | recording.head)]
    lines += [
        json.dumps(
            {
                "prompt_tokens": answer.prompt_tokens,
                "seed": answer.seed,
                "hits": "".join("01"[hit] for hit in answer.hits),
                "confidences": [round(confidence * THOUSANDTHS) for confidence in answer.confidences],
            },
            separators=(",", ":"),
        )
        for answer in recording.answers
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read(path: Path) -> Recording:
    """Read a recording. Raises RecordingError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordingError(f"{path} cannot be read: {error}") from error
    head = _object(lines[0] if lines else "", f"{path}, line 1")
    if (head.pop("format", None), head.pop("version", None)) != (FORMAT, VERSION):
        raise RecordingError(f"{path}, line 1: expected the head of an {FORMAT} of version {VERSION}")
    answers = [_answer(line, f"{path}, line {number}") for number, line in enumerate(lines[1:], 2) if line.strip()]
    if not answers:
        raise RecordingError(f"{path}, line 2: expected at least one answer, found the end of the file")
    return Recording(answers, head)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise RecordingError(f"{where}: expected a JSON object, found {line[:60]!r}")
    return value


def _answer(line: str, where: str) -> RecordedAnswer:
    value = _object(line, where)
    hits, confidences = value.get("hits"), value.get("confidences")
    if not isinstance(hits, str) or not hits or set(hits) - {"0", "1"}:
        raise RecordingError(f"{where}: expected hits as a string of 1 and 0, found {hits!r:.60}")
    if not isinstance(confidences, list) or len(confidences) != len(hits):
        raise RecordingError(f"{where}: expected {len(hits)} confidences, one for each hit")
    if not all(isinstance(c, int) and 0 <= c <= THOUSANDTHS for c in confidences):
        raise RecordingError(f"{where}: expected confidences in thousandths, whole numbers from 0 to {THOUSANDTHS}")
    return RecordedAnswer(
        int(value.get("prompt_tokens", 0)),
        int(value.get("seed", 0)),
        [hit == "1" for hit in hits],
        [c / THOUSANDTHS for c in confidences],
    )
