"""The sizes of simulated messages, held against the generated code of the contract."""

from __future__ import annotations

import pytest
from outrider.v1 import verifier_pb2 as pb

from netlab.simulator.messages import Commit, Draft

FRAMING_BYTES = 5 + 9  # gRPC and HTTP/2
NOW_US = 1_800_000_000_000_000


@pytest.mark.parametrize("count", [1, 4, 8, 32])
def test_drafts(count: int) -> None:
    tokens = [70_000 + i for i in range(count)]
    draft = pb.Draft(
        start=900, tokens=tokens, known_length=880, sent_at_us=NOW_US, confidence=bytes(200 for _ in tokens)
    )
    real = pb.GenerateRequest(draft=draft).ByteSize() + FRAMING_BYTES
    assert Draft(900, tokens, 880, 0.0, None).size_bytes == pytest.approx(real, abs=4)


@pytest.mark.parametrize("count", [1, 4, 8, 32])
def test_commits(count: int) -> None:
    tokens = [70_000 + i for i in range(count)]
    commit = pb.Commit(
        start=900, tokens=tokens, drafted_mask=2 ** (count - 1) - 1, echo_sent_at_us=NOW_US, hold_us=25_000,
        queue_us=1500, forward_us=30_000, batch_size=1, draft_budget=64,
    )  # fmt: skip
    real = pb.GenerateResponse(commit=commit).ByteSize() + FRAMING_BYTES
    simulated = Commit(900, tokens, count - 1, 0.0, 25.0, 1.5, 30.0, 64, finished=False)
    assert simulated.size_bytes == pytest.approx(real, abs=5)
