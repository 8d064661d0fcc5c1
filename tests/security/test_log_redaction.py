"""Logs tell what failed and where, and nobody's words."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
from outrider.v1 import verifier_pb2 as pb

from cloud_verifier.engines.base import Block, Choices
from cloud_verifier.log_redaction import without_words
from cloud_verifier.observability.logs import AccessLog
from tests.harness import InProcessVerifier, LetterCodec
from tests.mock_engine import MockEngine
from tests.service.raw import Stream, opening

MARKER = "Xylophone9"
TOKENS = LetterCodec().encode_text(MARKER)


class TalkativeCodec(LetterCodec):
    """Fails as tokenizers and templates do: quoting what it was given."""

    def encode_text(self, text: str) -> list[int]:
        if text.endswith("Q"):
            raise RuntimeError(f"cannot read {text}")
        return super().encode_text(text)


class TalkativeEngine(MockEngine):
    """Fails on token 0, quoting what it was given."""

    def step(self, blocks: Sequence[Block]) -> list[Choices]:
        for block in blocks:
            if 0 in block.tokens:
                raise RuntimeError(f"cannot evaluate {LetterCodec().text(block.tokens)} {list(block.tokens)}")
        return super().step(blocks)


@pytest.mark.parametrize(("level", "told"), [(logging.INFO, False), (logging.DEBUG, True)])
def test_no_words_in_the_logs_unless_asked_for(level: int, told: bool, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(level),
        InProcessVerifier(TalkativeEngine(), TalkativeCodec(), watchers=[AccessLog()]) as verifier,
    ):

        def ends(**fields: object) -> str:
            with Stream(verifier.address, opening(sampling=pb.SamplingParams(max_tokens=5), **fields)) as stream:
                return stream.until_the_end()[1].reason

        chat = pb.ChatMessages(messages=[pb.ChatMessage(role="user", content=[pb.ContentPart(text=MARKER)])])
        assert ends(text=MARKER) == ""
        assert ends(text=f"{MARKER}Q") == "VERIFIER_FAULT"
        assert ends(chat=chat) == "ENGINE_FAILED", "a chat begins with token 0"
    assert "RuntimeError at" in caplog.text
    assert "test_log_redaction.py" in caplog.text
    quoted = MARKER in caplog.text or str(TOKENS)[1:-1] in caplog.text
    assert quoted is told


def test_the_cause_of_an_exception_is_named_too() -> None:
    try:
        try:
            raise KeyError("secret")
        except KeyError as error:
            raise ValueError("secret too") from error
    except ValueError as error:
        said = without_words(error)
    assert "ValueError at test_log_redaction.py" in said
    assert "of KeyError at" in said
    assert "secret" not in said
    assert without_words(OSError("secret")) == "OSError at an unknown place"
