"""What a chunk tells of its ride."""

from __future__ import annotations

from typing import Any

from edge_client.assistant.ride import RideView
from edge_client.types import StreamChunk
from speculation.draft_tree import Outcome
from speculation.pace.base import News, Streaming
from speculation.pace.observed import Diary, Observed, Sent


def live(*outcomes: Outcome, tokens: int) -> dict[str, Any]:
    """Live figures after two blocks were sent and a commit decided these guesses."""
    diary = Diary()
    pace = Observed(Streaming(), diary)
    pace.heard(News(0.0, 11, 1, (), 0, None, 30.0, 0.0))
    diary.events += [Sent(1.0, 11, 4, 4), Sent(2.0, 15, 4, 8)]
    pace.heard(News(50.0, 11 + tokens, tokens, outcomes, tokens, 20.0, 30.0, 0.0))
    told: dict[str, Any] = RideView(diary).news(StreamChunk())["live"]
    return told


def test_a_second_guess_that_was_right_leaves_what_was_sent_in_flight() -> None:
    saved = live(Outcome(0, 0.6, False, 0), Outcome(0, 0.3, True, 1), Outcome(1, 0.9, True, 0), tokens=2)
    assert saved["in_flight_blocks"] == 2
    assert saved["acceptance"] == round(2 / 3, 4)
    assert live(Outcome(0, 0.6, False, 0), Outcome(0, 0.3, False, 1), tokens=1)["in_flight_blocks"] == 0
    assert live(*(Outcome(i, 0.9, True) for i in range(4)), tokens=4)["in_flight_blocks"] == 1
