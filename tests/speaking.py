"""Mock drafters that can answer alone: they have the letters of the mock target, and know what it would say."""

from __future__ import annotations

import numpy as np

from edge_client.drafters.base import Candidates
from outrider_models.model_text import ModelText
from tests.harness import LetterCodec, MockDrafter
from tests.mock_engine import EOS, next_token

LETTERS = LetterCodec.vocabulary


def letter_text() -> ModelText:
    codec = LetterCodec()

    def tokenize(text: str, opening: bool) -> list[int]:
        begins = text.startswith("<begin>")
        return [0] * begins + codec.encode_text(text.removeprefix("<begin>"))

    template = "<begin>{% for message in messages %}{{ message.content }}{% endfor %}"
    return ModelText("letters", LETTERS, tokenize, template, {}, frozenset({EOS}))


class SpeakingDrafter(MockDrafter):
    """Right up to a position, wrong there, and after that what the mock target would say to that."""

    def __init__(self, target_seed: int, wrong_at: int = -1) -> None:
        super().__init__(3, target_seed, 1.0)
        self._wrong_at = wrong_at

    def candidates(self) -> Candidates:
        token = next_token(self._tokens, self._target_seed)
        if self.length == self._wrong_at:
            token = 2 + (token - 1) % 60
        return Candidates(np.array([token]), np.array([-0.1]))

    def speaker(self) -> SpeakingDrafter:
        return self

    def model_text(self) -> ModelText:
        return letter_text()
