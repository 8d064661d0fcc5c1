"""Smaller parts of the experiments: drafters for the laboratory, diaries, timelines, labels, agreement's figures."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edge_client.drafters.base import DrafterError
from netlab.experiments import drafters, style, timeline
from netlab.experiments.drawn_tree import Fate, guesses_of
from netlab.link_settings import LinkSettings
from netlab.race import BestSync
from netlab.simulator.device import DeviceSettings
from netlab.simulator.link import Link
from netlab.simulator.pair import independent
from netlab.simulator.run import Result, Rider, simulate
from speculation.pace.adaptive import Adaptive
from speculation.pace.base import FixedTree, Pace, Synchronous
from speculation.pace.observed import Committed, Diary, Drafted, Observed, Sent
from speculation.pace.tree_rounds import BestFirst


def test_garbage_is_the_same_at_the_same_position_and_keeps_the_contract() -> None:
    drafter = drafters.Garbage(1000, "print")
    drafter.feed([1, 2, 3])
    first = drafter.candidates().ids[0]
    drafter.feed([4])
    drafter.rollback(3)
    with pytest.raises(DrafterError):
        drafter.candidates()
    drafter.rollback(2)
    drafter.feed([9])
    assert drafter.candidates().ids[0] == first
    assert 0 <= first < 1000
    with pytest.raises(ValueError, match="cannot roll back to 7"):
        drafter.rollback(7)


def test_slowed_takes_its_time_for_every_guess_and_changes_nothing_else() -> None:
    drafter = drafters.load("garbage", 5.0, 1000, "print")
    assert isinstance(drafter, drafters.Slowed)
    began_s = time.perf_counter()
    drafter.feed([1, 2, 3])
    drafter.feed([4])
    assert time.perf_counter() - began_s >= 0.01
    plain = drafters.Garbage(1000, "print")
    plain.feed([1, 2, 3, 4])
    assert drafter.candidates().ids[0] == plain.candidates().ids[0]
    assert drafter.length == 4
    assert drafters.load("none", 5.0, 1000, "print") is None


def play(pace: Pace) -> Result:
    answer = independent(0.8).answers(1, 48, seed=3)[0]
    return simulate([Rider(answer, Link.of_settings(LinkSettings.of_rtt(40)), pace, DeviceSettings(4))]).results[0]


PACES = {
    "adaptive": Adaptive,
    "sync": lambda: Synchronous(4),
    "tree": lambda: FixedTree(3),
    "opt-tree": lambda: BestFirst(24),
}


@pytest.mark.parametrize("make", PACES.values(), ids=PACES)
def test_watching_a_pace_changes_nothing_and_misses_nothing(make: type[Pace]) -> None:
    diary = Diary()
    watched = play(Observed(make(), diary))
    assert watched == play(make())
    sent = [event for event in diary.events if isinstance(event, Sent)]
    assert len(sent) == watched.draft_messages
    drawn = [len(event.probabilities) for event in diary.events if isinstance(event, Drafted)]
    assert sum(drawn) == watched.drafted_tokens
    commits = [event for event in diary.events if isinstance(event, Committed)]
    assert sum(commit.tokens for commit in commits) == watched.tokens
    assert sum(commit.used for commit in commits) == watched.accepted_tokens
    assert diary.lookahead_tokens is not None


@pytest.mark.parametrize("make", PACES.values(), ids=PACES)
def test_a_diary_tells_what_hung_on_what(make: type[Pace]) -> None:
    """Where a draw were taken for one on another branch, guesses that a commit decided would be missing."""
    diary = Diary()
    watched = play(Observed(make(), diary))
    guesses = guesses_of(diary.events)
    assert len(guesses) == watched.drafted_tokens
    commits = [event for event in diary.events if isinstance(event, Committed)]
    decided = [guess for guess in guesses if guess.fate is not Fate.UNDECIDED]
    assert len(decided) == sum(len(commit.outcomes) for commit in commits)
    right = [guess for guess in guesses if guess.fate is Fate.RIGHT]
    assert len(right) == sum(sum(commit.outcomes) for commit in commits)
    assert all(guess.parent is None or guess.parent.fate is Fate.RIGHT for guess in decided)
    saved = [guess for guess in right if guess.rank > 0]
    assert len(saved) == sum(rank > 0 for commit in commits for rank in commit.ranks)
    assert bool(saved) == (make().width > 1)
    assert any(guess.on_branch for guess in right) == (make().width > 1)


def test_timelines_survive_their_file(tmp_path: Path) -> None:
    diary = Diary()
    play(Observed(Adaptive(), diary))
    file = tmp_path / "timeline.json"
    timeline.write([timeline.Ride("adaptive", 40.0, diary)], {"commit": "abc1234"}, file)
    rides, head = timeline.read(file)
    assert rides[0].diary.events == diary.events
    assert head == {"commit": "abc1234"}
    axis = timeline.draw(rides).axes[0]
    assert axis.get_xlabel() == "time since the session opened (ms)"
    assert axis.get_ylabel() == "answer (tokens)"
    file.write_text('{"format": "outrider-timeline", "version": 1}')
    with pytest.raises(timeline.TimelineError):
        timeline.read(file)


@pytest.mark.parametrize(
    ("wanted", "placed"),
    [([0, 50], [0, 50]), ([10, 10], [5, 15]), ([0, 4, 50], [-3, 7, 50]), ([0, 8, 16], [-2, 8, 18])],
)
def test_labels_move_apart_around_their_middle(wanted: list[float], placed: list[float]) -> None:
    assert style.spread(wanted, 10) == pytest.approx(placed)


def test_policies_keep_their_colours() -> None:
    looks = style.looks(["streaming", "sync:8", "adaptive", "mine"])
    assert looks["sync:8"] == style.LOOKS["sync"]
    assert looks["mine"] not in style.LOOKS.values()
    both = style.looks(["sync:4", "sync:8"])
    assert both["sync:4"] != both["sync:8"]


def test_best_sync_begins_with_a_length_of_its_sweep() -> None:
    assert isinstance(BestSync().pace(), Synchronous)
