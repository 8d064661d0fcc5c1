"""Recorded pairs: what a real drafter would have guessed at every position of a real target's answers.

A recording is a file of JSON lines. The first is its head:

    {"format": "outrider-recording", "version": 1, "target": ..., "drafter": ..., "temperature": 0.8, ...}

and each further line is an answer: its prompt's length, its seed, its hits as a string of 1 (right) and 0, and the
drafter's confidences, in thousandths:

    {"prompt_tokens": 31, "seed": 1000, "hits": "1101...", "confidences": [991, 874, 302, 765, ...],
     "ranks": "0010...", "others": [[5, 1], [80, 30], [281, 102], ...]}

ranks tells which of the drafter's candidates the target's token is: 0 for its guess, 1 for the next, - for none of
them; others, how sure the drafter is of the candidates after the first. Both may be missing. Hits hold given a right
prefix; see `pair`.
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
NONE = "-"  # the rank of a token that is none of the candidates


class RecordingError(ValueError):
    """A recording that cannot be used. The message names file, line and what was expected."""


@dataclass(frozen=True)
class RecordedAnswer:
    """hits[i], confidences[i], ranks[i], others[i]: at answer position i, as in `pair.Answer`."""

    prompt_tokens: int
    seed: int
    hits: Sequence[bool]
    confidences: Sequence[float]
    ranks: Sequence[int] = field(default_factory=list)
    others: Sequence[Sequence[float]] = field(default_factory=list)


@dataclass(frozen=True)
class Recording:
    """Answers, and in `head` where they come from (target, drafter, temperature, date, ...)."""

    answers: Sequence[RecordedAnswer]
    head: dict[str, Any] = field(default_factory=dict)

    def pair(self, name: str) -> RecordedPair:
        """For the simulator."""
        answers = self.answers
        hits, confidences = [a.hits for a in answers], [a.confidences for a in answers]
        if not all(a.ranks for a in answers):
            return RecordedPair(hits, confidences, name)
        return RecordedPair(hits, confidences, name, [a.ranks for a in answers], [a.others for a in answers])


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
                **_ranked(answer),
            },
            separators=(",", ":"),
        )
        for answer in recording.answers
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _ranked(answer: RecordedAnswer) -> dict[str, Any]:
    if not answer.ranks:
        return {}
    return {
        "ranks": "".join(NONE if rank < 0 else str(rank) for rank in answer.ranks),
        "others": [[round(confidence * THOUSANDTHS) for confidence in sure] for sure in answer.others],
    }


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
    ranks, others = _ranks(value, hits, where)
    return RecordedAnswer(
        int(value.get("prompt_tokens", 0)),
        int(value.get("seed", 0)),
        [hit == "1" for hit in hits],
        [c / THOUSANDTHS for c in confidences],
        ranks,
        others,
    )


def _ranks(value: dict[str, Any], hits: str, where: str) -> tuple[list[int], list[list[float]]]:
    ranks, others = value.get("ranks"), value.get("others")
    if ranks is None and others is None:
        return [], []
    if not isinstance(ranks, str) or len(ranks) != len(hits) or set(ranks) - set("0123456789" + NONE):
        raise RecordingError(
            f"{where}: expected ranks as a string of {len(hits)} digits or {NONE}, found {ranks!r:.60}"
        )
    if not isinstance(others, list) or len(others) != len(hits):
        raise RecordingError(f"{where}: expected {len(hits)} lists of others' confidences, one for each hit")
    for sure in others:
        if not isinstance(sure, list) or not all(isinstance(c, int) and 0 <= c <= THOUSANDTHS for c in sure):
            raise RecordingError(f"{where}: expected others' confidences in thousandths, found {sure!r:.60}")
    if any((rank == "0") != (hit == "1") for rank, hit in zip(ranks, hits, strict=True)):
        raise RecordingError(f"{where}: ranks and hits contradict each other; a hit has rank 0")
    return (
        [-1 if rank == NONE else int(rank) for rank in ranks],
        [[c / THOUSANDTHS for c in sure] for sure in others],
    )
