"""Small tokenizers of two kinds, and drafters without a model that have them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache

import numpy as np

from edge_client.drafters.base import Candidates, Drafter, DrafterError, DrafterInfo
from models.demo.data import train_tokenizer
from models.demo.train_vocabularies import train_other_tokenizer
from speculation.vocabulary.segmenter import Segmenter
from speculation.vocabulary.vocabulary import Vocabulary

TEXT = (
    "I would like to book a table for two at an Italian restaurant in San Jose. The restaurants there are reserved "
    "for 11:30 on the 24th, aren't they?\nThe weather in San Francisco: 59 degrees, 12 percent chance of rain. "
    "Grüße aus Köln, ça va? 你好 世界。 😀 Playing music by the Rolling Stones; thanks for the reservation!"
)
DIALOGUES = [[{"role": "user", "content": TEXT}], [{"role": "assistant", "content": TEXT.lower()}]]


@cache
def byte_level() -> Vocabulary:
    """As the demo pair has it, of few tokens."""
    return Vocabulary.of_tokenizer(json.loads(train_tokenizer(DIALOGUES).backend_tokenizer.to_str()))


@cache
def sentencepiece(size: int = 600) -> Vocabulary:
    """Spaces as "▁", bytes as a fallback, digits one by one."""
    return Vocabulary.of_tokenizer(json.loads(train_other_tokenizer(DIALOGUES, size).to_str()))


class ListDrafter(Drafter):
    """Keeps the contract on a list of tokens; what comes next is for subclasses to say."""

    def __init__(self, vocabulary: Vocabulary, context_tokens: int = 4096) -> None:
        self.info = DrafterInfo("list", len(vocabulary.strings), vocabulary.fingerprint, context_tokens)
        self._vocabulary = vocabulary
        self.tokens: list[int] = []
        self.evaluated = 0
        self._fed = False

    @property
    def length(self) -> int:
        return len(self.tokens)

    def feed(self, tokens: Sequence[int]) -> None:
        assert tokens
        assert all(0 <= token < self.info.vocabulary_size for token in tokens)
        if len(self.tokens) + len(tokens) > self.info.context_tokens:
            raise DrafterError("full")
        self.tokens.extend(tokens)
        self.evaluated += len(tokens)
        self._fed = True

    def candidates(self) -> Candidates:
        if not self._fed:
            raise DrafterError("feed first")
        ids, probs = self.likely()
        order = np.argsort(-np.array(probs), kind="stable")
        return Candidates(np.array(ids, np.int64)[order], np.log(np.array(probs)[order]))

    def likely(self) -> tuple[list[int], list[float]]:
        raise NotImplementedError

    def rollback(self, length: int) -> None:
        assert 0 <= length <= len(self.tokens)
        self._fed = self._fed and length == len(self.tokens)
        del self.tokens[length:]

    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    def close(self) -> None:
        self.tokens = []


class HashDrafter(ListDrafter):
    """Says anything, but always the same after the same tokens."""

    def likely(self) -> tuple[list[int], list[float]]:
        seed = hashlib.blake2b(repr(self.tokens).encode(), digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(seed, "little"))
        ids = rng.choice(self.info.vocabulary_size, 12, replace=False)
        return ids.tolist(), (0.9 * rng.dirichlet(np.full(12, 0.5)) + 1e-6).tolist()


class ParrotDrafter(ListDrafter):
    """Knows one text by heart, in its own tokens."""

    def __init__(self, vocabulary: Vocabulary, text: str, context_tokens: int = 4096) -> None:
        super().__init__(vocabulary, context_tokens)
        self.text = Segmenter(vocabulary.spellings).tokens(text.encode())

    def likely(self) -> tuple[list[int], list[float]]:
        known = self.tokens == self.text[: len(self.tokens)] and len(self.tokens) < len(self.text)
        best = self.text[len(self.tokens)] if known else 300
        ids = [best, *(token for token in range(300, 308) if token != best)]
        return ids, [0.9, *[0.1 / len(ids)] * (len(ids) - 1)]
