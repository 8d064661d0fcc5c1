"""What a device may ask of its priority."""

from __future__ import annotations

from typing import Any

import pytest
from outrider.v1 import verifier_pb2 as pb

from cloud_verifier.serving.open_request import LEAST_PRIORITY, PROTOCOL_VERSION, Served, new_session
from tests.harness import LetterCodec
from tests.mock_engine import MockEngine


@pytest.mark.parametrize(
    ("asked", "allowed", "granted"),
    [(0, 0, 0), (5, 0, 0), (5, 3, 3), (2, 3, 2), (-7, 3, -7), (-(2**31), 0, LEAST_PRIORITY), (2**31 - 1, 9, 9)],
)
def test_as_asked_up_to_the_operators_limit(asked: int, allowed: int, granted: int) -> None:
    letters: Any = LetterCodec()
    served = Served("mock", MockEngine().info, letters, max_priority=allowed)
    request = pb.Open(protocol_version=PROTOCOL_VERSION, prompt_ids=pb.TokenIds(ids=[5]), priority=asked)
    assert new_session(request, served).priority == granted
