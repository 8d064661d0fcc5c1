"""A device that writes alone: parameters mean what they mean with the verifier, and contexts may be short."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from edge_client.drafters.base import Candidates, DrafterInfo
from edge_client.riding.drafter_lease import DrafterLease
from edge_client.riding.local_decoding import LocalDecoding
from speculation.sampling import Guess, SamplingParams
from tests.harness import LetterCodec
from tests.mock_engine import EOS
from tests.speaking import SpeakingDrafter, letter_text

CODEC = LetterCodec()
ABC = CODEC.encode_text("abc")


class Fixed(SpeakingDrafter):
    """The same candidates everywhere."""

    def __init__(self, probabilities: dict[int, float], context_tokens: int = 4096) -> None:
        super().__init__(0)
        self.info = DrafterInfo("fixed", 64, LetterCodec.fingerprint, context_tokens)
        self._fixed = probabilities
        self.longest = 0

    def feed(self, tokens: Sequence[int]) -> None:
        super().feed(tokens)
        self.longest = max(self.longest, self.length)
        assert self.length <= self.info.context_tokens

    def candidates(self) -> Candidates:
        return Candidates(np.array([*self._fixed]), np.log(np.array([*self._fixed.values()])))


def solo(
    drafter: SpeakingDrafter, *, of_log: bool = True, shown: str = "", answer: Sequence[int] = (), **params: Any
) -> LocalDecoding:
    settings = SamplingParams(**params)
    return LocalDecoding(DrafterLease(drafter), letter_text(), settings, 7, ABC, list(answer), shown, of_log)


def write(subject: LocalDecoding, cancelled: Callable[[], bool] = lambda: False) -> tuple[list[int], str]:
    heard: list[int] = []
    reason = subject.run(lambda token, _text: heard.append(token), cancelled)
    assert heard == subject.tokens
    return heard, reason


def test_tokens_are_drawn_with_the_seed_at_their_positions() -> None:
    likely = {5: 0.4, 6: 0.3, 7: 0.3}
    tokens, reason = write(solo(Fixed(likely), max_tokens=20))
    guess = Guess(SamplingParams(), 7)
    ids, log_probs = np.array([*likely]), np.log(np.array([*likely.values()]))
    assert tokens == [guess(3 + i, ids, log_probs)[0] for i in range(20)]
    assert len(set(tokens)) == 3
    assert reason == "length"


@pytest.mark.parametrize(
    ("params", "tokens", "reason"),
    [
        ({"temperature": 0.0, "max_tokens": 3}, [5, 5, 5], "length"),
        ({"temperature": 0.0, "max_tokens": 3, "frequency_penalty": 2.0}, [5, 6, 7], "length"),
        ({"temperature": 0.0, "max_tokens": 2, "repetition_penalty": 9.0}, [5, 6], "length"),
        ({"temperature": 0.0, "max_tokens": 2, "presence_penalty": 2.0, "logit_bias": {7: 9.0}}, [7, 7], "length"),
        ({"temperature": 0.0, "max_tokens": 9, "stop_ids": (5,)}, [5], "stop"),
        ({"temperature": 0.0, "max_tokens": 9, "stop": ("dd",)}, [5, 5], "stop"),
    ],
)
def test_parameters_mean_what_they_mean_with_the_verifier(
    params: dict[str, Any], tokens: list[int], reason: str
) -> None:
    assert write(solo(Fixed({5: 0.5, 6: 0.3, 7: 0.2}), **params)) == (tokens, reason)


def test_ids_of_another_vocabulary_mean_nothing() -> None:
    ids: dict[str, Any] = {"stop_ids": (5,), "logit_bias": {6: 99.0}}
    subject = solo(Fixed({5: 0.9, 6: 0.1}), of_log=False, temperature=0.0, max_tokens=2, **ids)
    assert write(subject) == ([5, 5], "length")


def test_the_models_own_end_ends_it_unless_it_is_to_be_ignored() -> None:
    assert write(solo(Fixed({EOS: 1.0}), max_tokens=3)) == ([EOS], "stop")
    assert write(solo(Fixed({EOS: 1.0}), max_tokens=3, ignore_eos=True)) == ([EOS] * 3, "length")
    assert write(solo(Fixed({}), max_tokens=3)) == ([], "stop")


def test_the_answer_so_far_counts() -> None:
    tokens, reason = write(solo(Fixed({5: 1.0}), answer=[5, 5], shown="dd", max_tokens=3))
    assert (tokens, reason) == ([5], "length")


def test_text_that_the_verifier_held_back_comes_first() -> None:
    subject = solo(Fixed({6: 1.0}), answer=CODEC.encode_text("xyd"), shown="xy", max_tokens=5, stop=("dd",))
    write(subject)
    assert subject.written == "dee"


def test_a_short_context_is_begun_anew() -> None:
    drafter = Fixed({5: 1.0}, context_tokens=16)
    tokens, _ = write(solo(drafter, max_tokens=100))
    assert len(tokens) == 100
    assert drafter.longest <= 16


def test_without_a_limit_the_context_is_one() -> None:
    assert write(solo(Fixed({5: 1.0}, context_tokens=16)))[0] == [5] * 13


def test_nobody_waits_any_more() -> None:
    calls = iter([False, False, True])
    tokens, reason = write(solo(Fixed({5: 1.0}), max_tokens=9), lambda: next(calls))
    assert (tokens, reason) == ([5, 5], "abort")
