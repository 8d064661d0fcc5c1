"""What the riding loop sends from two threads stays in order."""

from __future__ import annotations

import threading
from typing import Any

from outrider.v1 import verifier_pb2 as pb

from edge_client.riding.riding_loop import RidingLoop
from speculation.pace.base import Synchronous
from speculation.sampling import SamplingParams
from speculation.verifier_tree import VerifierTree
from tests.unit.views import tip_of

LOG = [1, 2, 3]


class SlowLink:
    """Its first message takes a while."""

    def __init__(self) -> None:
        self.sent: list[pb.Draft] = []
        self.within, self.gate = threading.Event(), threading.Event()

    def send(self, request: pb.GenerateRequest) -> None:
        if not self.within.is_set():
            self.within.set()
            assert self.gate.wait(30)
        self.sent.append(request.draft)


def test_a_verifier_told_not_to_wait_keeps_the_guesses_that_are_under_way() -> None:
    link: Any = SlowLink()
    loop = RidingLoop(link, None, Synchronous(4), SamplingParams(), 1)
    loop._line.log = list(LOG)
    loop._line.erase()
    for token in (4, 5, 6):
        loop._line.grow(tip_of(loop._line), [token], [1.0], [1.0])
    flushing = threading.Thread(target=loop._flush)
    flushing.start()
    assert link.within.wait(30)
    telling = threading.Thread(target=loop.stop_waiting)
    telling.start()
    telling.join(0.1)  # which it can only do by going first
    link.gate.set()
    flushing.join(30)
    telling.join(30)
    line = VerifierTree(list(LOG))
    for draft in link.sent:
        line.draft(draft.start, draft.tokens, draft.known_length, 64)
    assert line.guesses == [4, 5, 6]
    assert link.sent[-1].HasField("patience_ms")
    assert link.sent[-1].patience_ms == loop.told_patience_ms == 0
