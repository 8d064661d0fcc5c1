"""An answer that ends inside a block of accepted guesses ends where streaming ends it, with the same text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from outrider.v1 import verifier_pb2 as pb

from speculation.pace.base import PATIENCE_UNLIMITED_MS
from tests.harness import InProcessVerifier, LetterCodec
from tests.mock_engine import EOS, MockEngine, answer, next_token
from tests.service.raw import PROMPT, Rest, Stream, opening

TOKENS = 10  # the first comes with the prompt, then a block of eight guesses and the token after them
SEED = next(seed for seed in range(1, 999) if len(set(answer(PROMPT, seed, TOKENS))) == TOKENS)
RIGHT = answer(PROMPT, SEED, TOKENS)  # no token twice
LETTERS = LetterCodec().text(RIGHT)
EOS_EVERY = 7


@pytest.fixture(scope="module")
def verifier() -> Iterator[InProcessVerifier]:
    with InProcessVerifier(MockEngine()) as subject:
        yield subject


def streamed(verifier: InProcessVerifier, **fields: Any) -> Rest:
    """Token by token."""
    with Stream(verifier.address, opening(want_text=True, **fields)) as stream:
        stream.opened()
        return stream.rest()


def buried(right: list[int]) -> tuple[list[int], list[int], bytes]:
    """A tree in which every other right guess is the second at its place: tokens, parents and confidences."""
    tokens: list[int] = []
    parents: list[int] = []
    confidence = b""
    for place, token in enumerate(right):
        if place % 2:
            tokens.append(token ^ 1)
            parents.append(1)
            confidence += b"\x80"  # likelier than a second one can be: the right one is a twig
        tokens.append(token)
        parents.append(0 if not place else 1 + place % 2)
        confidence += b"\xff"
    return tokens, parents, confidence


def in_one_block(verifier: InProcessVerifier, right: list[int], *, forked: bool = False, **fields: Any) -> Rest:
    """The verifier writes nothing after the first token before it has the guesses: they are checked in one step."""
    request = opening(want_text=True, patience_ms=PATIENCE_UNLIMITED_MS, **fields)
    with Stream(verifier.address, request) as stream:
        stream.opened()
        first = stream.read()
        start, guesses = len(PROMPT) + 1, right[1 : TOKENS - 1]
        if forked:
            guesses, parents, confidence = buried(guesses)
            stream.draft(start, guesses, start, parents=parents, confidence=confidence)
        else:
            stream.draft(start, guesses, start)
        rest = stream.rest()
    return rest._replace(
        tokens=[*first.commit.tokens, *rest.tokens],
        texts=[first.commit.text, *rest.texts],
        commits=[first.commit, *rest.commits],
    )


def same(verifier: InProcessVerifier, right: list[int], at: int, **fields: Any) -> Rest:
    """The answer that ends with token `at`, of all kinds."""
    fields = {"seed": SEED} | fields
    slow = streamed(verifier, **fields)
    same_as(slow, in_one_block(verifier, right, forked=True, **fields), at)
    return same_as(slow, in_one_block(verifier, right, **fields), at)


def same_as(slow: Rest, block: Rest, at: int) -> Rest:
    assert [len(commit.tokens) for commit in block.commits] == ([1, at] if at else [1])
    assert (block.tokens, block.text) == (slow.tokens, slow.text)
    assert (block.finished.reason, block.finished.usage) == (slow.finished.reason, slow.finished.usage)
    assert block.finished.length == slow.finished.length
    told = [[one for commit in rest.commits for one in commit.logprobs] for rest in (slow, block)]
    assert told[0] == told[1]
    assert len(told[0]) == len(block.tokens)
    return block


@pytest.mark.parametrize("at", range(TOKENS))
def test_at_most_so_many_tokens(verifier: InProcessVerifier, at: int) -> None:
    rest = same(verifier, RIGHT, at, sampling=pb.SamplingParams(max_tokens=at + 1, logprobs=0))
    assert rest.tokens == RIGHT[: at + 1]
    assert rest.finished.reason == pb.FINISH_REASON_LENGTH


@pytest.mark.parametrize("at", range(TOKENS))
def test_a_stop_id(verifier: InProcessVerifier, at: int) -> None:
    rest = same(verifier, RIGHT, at, sampling=pb.SamplingParams(stop_ids=[RIGHT[at]], logprobs=0))
    assert rest.tokens == RIGHT[: at + 1]
    assert rest.text == LETTERS[: at + 1]  # as vLLM has it: only special ones have no text
    assert rest.finished.reason == pb.FINISH_REASON_STOP


@pytest.mark.parametrize(
    ("at", "width"), [(at, width) for at in range(TOKENS) for width in (1, 2, 3) if width <= at + 1]
)
def test_a_stop_text(verifier: InProcessVerifier, at: int, width: int) -> None:
    """One of several, over one token or more; the last of them ends the answer."""
    stop = LETTERS[at + 1 - width : at + 1]
    sampling = pb.SamplingParams(stop=["??", stop, LETTERS[at] + "!"], logprobs=0)
    rest = same(verifier, RIGHT, at, sampling=sampling)
    assert rest.tokens == RIGHT[: at + 1]
    assert rest.text == LETTERS[: at + 1 - width]
    assert rest.finished.reason == pb.FINISH_REASON_STOP


@pytest.mark.parametrize("at", range(TOKENS))
def test_the_end_of_the_answer(at: int) -> None:
    seed = next(seed for seed in range(1, 100_000) if _first_end(seed) == at)
    right = _with_ends(seed)
    with InProcessVerifier(MockEngine(eos_every=EOS_EVERY)) as verifier:
        rest = same(verifier, right, at, seed=seed, sampling=pb.SamplingParams(max_tokens=99, logprobs=0))
    assert rest.tokens == right[: at + 1]
    assert rest.finished.reason == pb.FINISH_REASON_STOP


def _with_ends(seed: int) -> list[int]:
    tokens = list(PROMPT)
    for _ in range(TOKENS):
        tokens.append(next_token(tokens, seed, EOS_EVERY))
    return tokens[len(PROMPT) :]


def _first_end(seed: int) -> int:
    right = _with_ends(seed)
    return right.index(EOS) if EOS in right else -1
