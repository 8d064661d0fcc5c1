"""A verifier with a mock target, and a session beside every attack on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest

from cloud_verifier.serving.service import ServiceSettings
from cloud_verifier.serving.text_codec import TextError
from tests.harness import InProcessVerifier, LetterCodec
from tests.mock_engine import MockEngine
from tests.service.raw import Bystander
from tests.service.two_models import TwoModels


class QuotingCodec(LetterCodec):
    """Refuses what it has no letters for, quoting all of it, as chat templates do; breaks over an underscore."""

    longest_token_bytes = 1 << 16  # so that nothing is refused unread

    def encode_text(self, text: str) -> list[int]:
        if "_" in text:
            raise RuntimeError("a codec with a fault")
        if unknown := text.strip(self.LETTERS):
            raise TextError(f"no letters for {unknown}")
        return super().encode_text(text)


@pytest.fixture(scope="module")
def verifier() -> Iterator[InProcessVerifier]:
    engine = MockEngine(max_sequences=16, context_limit=256)
    with InProcessVerifier(
        engine, QuotingCodec(), service=ServiceSettings(lease_s=60.0, open_timeout_s=2.0)
    ) as subject:
        yield subject


@pytest.fixture
def two_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TwoModels]:
    """With a cache of vocabularies of its own for whoever asks it."""
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_: tmp_path)
    running = TwoModels()
    with running:
        yield running
        running.allow()


@pytest.fixture
def bystander(verifier: InProcessVerifier) -> Iterator[None]:
    """A session that is half-way when the attack comes and must end with the right words after it."""
    subject = Bystander(verifier.address)
    yield
    subject.finish()
