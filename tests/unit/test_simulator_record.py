"""Recording, with a target and a drafter that are no models."""

from __future__ import annotations

import json
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client.drafters.base import Candidates, Drafter, DrafterInfo
from netlab.simulator.record import PromptsError, RecordSettings, conversations, record, record_answer
from tests.mock_engine import VOCABULARY_SIZE, MockEngine, next_token


class Knowing(Drafter):
    """Knows what the mock target will write, but for every fourth position, where it is as sure and wrong."""

    info = DrafterInfo("knowing", VOCABULARY_SIZE, "mock", 512)

    def __init__(self, seed: int) -> None:
        self.tokens: list[int] = []
        self.seed = seed

    @property
    def length(self) -> int:
        return len(self.tokens)

    def feed(self, tokens: Sequence[int]) -> None:
        self.tokens.extend(tokens)

    def candidates(self) -> Candidates:
        token = next_token(self.tokens, self.seed)
        if self.length % 4 == 0:
            token = 2 + (token - 1) % (VOCABULARY_SIZE - 2)
        return Candidates(np.array([token, 0]), np.log(np.array([0.75, 0.25])))

    def rollback(self, length: int) -> None:
        del self.tokens[length:]

    def close(self) -> None:
        self.tokens = []


def test_every_position_is_guessed_from_what_the_target_wrote() -> None:
    engine = MockEngine()
    settings = RecordSettings(tokens=20, temperature=0.0)
    answer = record_answer(engine, Knowing(7), [5, 6, 7], settings, 7)
    assert (answer.prompt_tokens, answer.seed) == (3, 7)
    assert list(answer.hits) == [(3 + i) % 4 != 0 for i in range(20)]
    assert list(answer.confidences) == pytest.approx([0.75] * 20)
    assert not engine.sequences


def test_an_answer_may_end_where_the_target_ends_it() -> None:
    short = record_answer(MockEngine(eos_every=5), Knowing(1), [5], RecordSettings(200, stop_at_end=True), 1)
    assert len(short.hits) < 200
    assert len(record_answer(MockEngine(eos_every=5), Knowing(1), [5], RecordSettings(200), 1).hits) == 200


class Letters:
    """A codec: one token per letter."""

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        return [2 + ord(c) % (VOCABULARY_SIZE - 2) for m in messages for c in m["content"]]


def test_prompts_are_used_again_and_lose_their_beginning_if_too_long() -> None:
    codec: Any = Letters()
    prompts = [[{"role": "user", "content": text}] for text in ("short", "x" * 1000)]
    settings = RecordSettings(tokens=12, count=3, seed=40)
    answers = list(record(MockEngine(), codec, Knowing(0), prompts, settings))
    assert [a.prompt_tokens for a in answers] == [5, 500, 5]
    assert [a.seed for a in answers] == [40, 41, 42]


def test_prompts_from_files(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("one\n\ntwo\n")
    assert sorted(m[0]["content"] for m in conversations(tmp_path / "lines.txt", 1)) == ["one", "two"]
    dialogue = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    with lzma.open(tmp_path / "dialogues.jsonl.xz", "wt") as file:
        file.write(json.dumps({"messages": dialogue}) + "\n" + json.dumps({"prompt": "alone"}) + "\n")
    found = conversations(tmp_path / "dialogues.jsonl.xz", 1)
    assert sorted(len(messages) % 2 for messages in found) == [1, 1]
    assert all(messages[-1]["role"] == "user" for messages in found)
    assert found == conversations(tmp_path / "dialogues.jsonl.xz", 1)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("none.txt", "", "line 1: expected a prompt"),
        ("bad.jsonl", '{"prompt": "a"}\nnonsense\n', "line 2: expected an object"),
        ("odd.jsonl", '{"messages": [1]}\n', "line 1: expected an object"),
        ("list.jsonl", "[]\n", "line 1: expected an object"),
        ("plain.jsonl.xz", "not compressed", "cannot be read"),
    ],
)
def test_malformed_prompts_name_file_line_and_what_was_expected(
    tmp_path: Path, name: str, text: str, sentence: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(PromptsError, match=sentence):
        conversations(tmp_path / name, 1)
