"""Answers share what they measured with those of the same model and drafter, and with no others."""

from __future__ import annotations

import pytest

from edge_client.riding import paces
from edge_client.riding.paces import Paces
from speculation.pace.adaptive import Adaptive
from speculation.pace.base import Objective, Pace, Streaming, Synchronous
from speculation.pace.experience import Experience


def known(pace: Pace) -> Experience:
    assert isinstance(pace, Adaptive)
    return pace.known


def test_what_is_measured_belongs_to_a_model_and_a_drafter() -> None:
    made = Paces("adaptive", Objective.CAPACITY)
    first = made.make("chat", False)
    assert known(made.make("chat", False)) is known(first)
    assert made.make("chat", False) is not first
    assert known(made.make("code", False)) is not known(first)
    assert known(made.make("chat", True)) is not known(first), "the device's own words are right more often"
    assert first.objective is Objective.CAPACITY
    assert isinstance(made.without_drafter(), Streaming)
    assert not made.same_without_drafter


def test_the_models_used_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paces, "KEPT", 2)
    made = Paces("adaptive")
    first, second = known(made.make("first", False)), known(made.make("second", False))
    assert known(made.make("first", False)) is first
    made.make("third", False)
    assert known(made.make("first", False)) is first
    assert known(made.make("second", False)) is not second


def test_a_pace_of_ones_own_is_made_for_every_answer() -> None:
    made = Paces(lambda: Synchronous(3))
    assert made.make("chat", False) is not made.make("chat", False)
    assert isinstance(made.without_drafter(), Synchronous)
    assert made.same_without_drafter


def test_an_unknown_policy_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="no policy 'best'"):
        Paces("best")
